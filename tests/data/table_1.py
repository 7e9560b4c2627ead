"""Table 1's shares in the forms that the tests of the mixture need."""

from slm2_minimal.report import shares, table1

# Table 1's printed weights (secondary), in units of 0.0001; they sum to 1.0001.
TABLE_1 = [
    79,
    120,
    318,
    13,
    45,
    91,
    18,
    2521,
    155,
    152,
    97,
    96,
    97,
    100,
    855,
    130,
    3292,
    231,
    19,
    23,
    88,
    63,
    66,
    11,
    132,
    363,
    724,
    102,
]
PRINTED = {source.name: source.weight for source in table1()}
EXACT = {
    source.name: shares("name")[source.name] for source in table1()
}  # tokens / total, in the table's order

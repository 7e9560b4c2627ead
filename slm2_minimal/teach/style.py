"""One look for every figure: on any page, in grey, and without colour vision."""

# Chosen to differ in lightness as well as in hue, so that lines stay apart in grey; the
# line styles say the same once more.
COLORS = ("#08306b", "#d95f02", "#0b684a", "#cc79a7", "#5a2d8a", "#96600f", "#6f7b86")
LINE_STYLES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))


def use_style() -> None:
    """Set matplotlib up: white ground, readable sizes, a cycle of colours and lines."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (7.0, 3.6),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": cycler(color=COLORS, linestyle=LINE_STYLES),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#d9d9d9",
            "grid.linewidth": 0.6,
            "font.size": 10,
            "axes.titlesize": 11,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        }
    )

"""Tokens per second of writing, at the full shape: ours in four formats beside
transformers and llama.cpp.

    python benchmarks/decode.py [--rounds 3] [--layers 24] [--scratch DIR]

The model is the 1.6B's shape with random weights, written once in each format (9 GB).
Every side runs in a process of its own, one after the other, in another order every
round: it loads its file, reads a prompt of 512 tokens and one of 128 (each as one text,
nothing kept between them), and writes 64 tokens greedily behind the second. Printed are
medians: tokens/s of writing (the first of the 64 belongs to the prompt); GB/s of
weights read, beside what this machine reads from memory in the same run; tokens/s of
the prompt of 512; and the largest memory of the process, mapped files included. Sides
that are not installed are named and left out (llama.cpp: the extra `edge`).
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from slm2_minimal import ModelConfig, StableLM2
from slm2_minimal.inference.quantise import quantise

PROMPT, LONG_PROMPT, NEW = 128, 512, 64
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
GGUF_TYPES = ("f16", "q8_0", "q4_0")
Run = dict[str, Any]


# What every side does: seconds of reading and of writing


def measure(read: Callable[[list[int]], Any], write: Callable[[list[int]], list[float]]) -> Run:
    """`read` takes a prompt; `write`, too, and gives the moment of each new token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 100_000, (LONG_PROMPT,), generator=generator).tolist()
    read(ids[:PROMPT])  # the first call allocates, and chooses kernels

    begin = time.perf_counter()
    read(ids)
    prefill = time.perf_counter() - begin

    moments = write(ids[:PROMPT])
    assert len(moments) == NEW
    decode = (moments[-1] - moments[0]) / (NEW - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"prefill": LONG_PROMPT / prefill, "decode": 1 / decode, "peak_mib": peak}


def run_ours(folder: Path, dtype: str) -> Run:
    """Our own model, from a folder in Hugging Face's format or a quantised one."""
    from slm2_minimal.distributed.pretrained import load_model
    from slm2_minimal.inference.generate import stream
    from slm2_minimal.inference.sampling import Sampling
    from slm2_minimal.inference.single_rows import speed_up

    if dtype in ("int8", "int4"):
        model, _ = load_model(str(folder))
    else:
        model = StableLM2.from_pretrained(folder, getattr(torch, dtype))
        speed_up(model)
    greedy = Sampling(temperature=0.0)

    def write(ids: list[int], new: int = NEW) -> list[float]:
        steps = stream(model, torch.tensor([ids]), new, greedy)
        return [time.perf_counter() for _ in steps]

    return measure(lambda ids: write(ids, 1), write)


def run_transformers(folder: Path, dtype: str) -> Run:
    """transformers' model of the same file, with its own `generate`."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    moments: list[float] = []

    class Clock(transformers.generation.streamers.BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            moments.append(time.perf_counter())

        def end(self) -> None:
            pass

    def write(ids: list[int], new: int = NEW) -> list[float]:
        moments.clear()
        prompt = torch.tensor([ids])
        options = {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
        mask = torch.ones_like(prompt)
        model.generate(prompt, attention_mask=mask, do_sample=False, streamer=Clock(), **options)
        return moments[1:]  # the first is the prompt's

    return measure(lambda ids: write(ids, 1), write)


def run_llama_cpp(file: Path, dtype: str) -> Run:
    """llama.cpp on the exported file."""
    import llama_cpp

    threads = torch.get_num_threads()
    options = {"n_threads": threads, "n_threads_batch": threads, "n_batch": LONG_PROMPT}
    model = llama_cpp.Llama(str(file), n_ctx=2 * LONG_PROMPT, verbose=False, **options)

    def write(ids: list[int], new: int = NEW) -> list[float]:
        model.reset()
        moments = []
        fresh = ids
        for _ in range(new):
            model.eval(fresh)
            fresh = [int(model.sample(temp=0.0))]
            moments.append(time.perf_counter())
        return moments

    return measure(lambda ids: write(ids, 1), write)


# The sides, and the files that they read


def sides(scratch: Path) -> dict[str, tuple[Callable[[Path, str], Run], Path, str]]:
    """Name -> what runs, its file, its format."""
    plain = scratch / "plain"
    all_sides: dict[str, tuple[Callable[[Path, str], Run], Path, str]] = {
        "ours fp32": (run_ours, plain, "float32"),
        "ours bf16": (run_ours, plain, "bfloat16"),
        "ours int8": (run_ours, scratch / "int8", "int8"),
        "ours int4": (run_ours, scratch / "int4", "int4"),
    }
    if find_spec("transformers"):
        all_sides["transformers bf16"] = (run_transformers, plain, "bfloat16")
    if find_spec("llama_cpp"):
        for kind in GGUF_TYPES:
            all_sides[f"llama.cpp {kind}"] = (run_llama_cpp, scratch / f"{kind}.gguf", kind)
    return all_sides


def write_files(scratch: Path, layers: int) -> None:
    """Each format once; what is there already is taken as it is."""
    plain = scratch / "plain"
    if not plain.exists():
        print("writing: random weights", flush=True)
        config = ModelConfig.preset("stablelm-2-1_6b").replace(num_hidden_layers=layers)
        torch.manual_seed(0)
        StableLM2(config).bfloat16().save_pretrained(plain)
    for bits, group in ((8, None), (4, 32)):
        out = scratch / f"int{bits}"
        if not out.exists():
            print(f"writing: {out.name}", flush=True)
            model = StableLM2.from_pretrained(plain, torch.bfloat16)
            quantise(model, bits, group).save_pretrained(out)
    for kind in GGUF_TYPES if find_spec("llama_cpp") else ():
        out = scratch / f"{kind}.gguf"
        if not out.exists():
            print(f"writing: {out.name}", flush=True)
            words = ["export", str(plain), str(out), "--format", "gguf", "--type", kind]
            words += ["--tokenizer", "arcade100k"]
            subprocess.run([sys.executable, "-m", "slm2_minimal", *words], check=True)


def weight_bytes(path: Path) -> int:
    """Bytes of the weights that a token reads: all of the file but the embedding."""
    from safetensors import safe_open

    if path.is_file():
        from gguf import GGUFReader

        tensors = GGUFReader(path).tensors
        return sum(int(t.n_bytes) for t in tensors if t.name != "token_embd.weight")
    total = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118  it is no dictionary
                if "embed_tokens" not in name:
                    total += content.get_tensor(name).nbytes
    return total


def read_bandwidth() -> float:
    """GB/s at which all threads together read 2 GB from memory: the best of five."""
    block = torch.ones(2**29)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - begin)
    return block.nbytes / best / 1e9


def cpu() -> str:
    """The processor's name and those of its instructions that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in found.items()}
    flags = [flag for flag in FLAGS if flag in found.get("flags", "").split()]
    return (
        f"{found.get('model name', platform.machine())} with {', '.join(flags) or 'none of AVX2'}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--scratch", type=Path, help="keep the files there (default: none)")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run, path, dtype = sides(options.scratch)[options.side]
        print(json.dumps(run(path, dtype)))
        return

    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        write_files(scratch, options.layers)
        compare(scratch, options.rounds, options.layers)


def compare(scratch: Path, rounds: int, layers: int) -> None:
    """All sides by turns, then the table."""
    names = list(sides(scratch))
    print(f"{cpu()}; {torch.get_num_threads()} threads; torch {torch.__version__}", flush=True)
    print(f"{layers} layers of the 1.6B's shape; medians of {rounds} rounds", flush=True)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    bandwidths = []
    for turn in range(rounds):
        bandwidths.append(read_bandwidth())
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            words = [sys.executable, __file__, "--side", name, "--scratch", str(scratch)]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: failed\n{done.stderr[-2000:]}", flush=True)
                continue
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {turn + 1}: {name}: {runs[name][-1]['decode']:.2f} tokens/s", flush=True)

    print(f"memory is read at {max(bandwidths):.1f} GB/s")
    print(f"{'':20}{'tokens/s':>10}{'(best)':>9}{'GB/s':>8}{'prefill/s':>11}{'MiB':>9}")
    for name, done in runs.items():
        if not done:
            continue
        path, dtype = sides(scratch)[name][1:]
        read = weight_bytes(path) * (2 if dtype == "float32" else 1)  # the file is in bf16
        decode = statistics.median(run["decode"] for run in done)
        best = max(run["decode"] for run in done)
        prefill = statistics.median(run["prefill"] for run in done)
        peak = max(run["peak_mib"] for run in done)
        gigabytes = read * decode / 1e9
        print(f"{name:20}{decode:10.2f}{best:9.2f}{gigabytes:8.1f}{prefill:11.1f}{peak:9,.0f}")


if __name__ == "__main__":
    main()

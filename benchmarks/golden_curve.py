"""Makes the golden curve of `halfbyte doctor`, and measures how far an honest machine, and a faulty one, is from it.

python benchmarks/golden_curve.py           goes on where it stopped; writes src/halfbyte/checks/golden_curve.json and results/golden_curve.json
python benchmarks/golden_curve.py --anew    forgets what was measured

Each variant runs in a process of its own: other numbers of threads, narrower instruction sets (of PyTorch, of its matrix library), 16-bit formats on
the processor, and faults. The tolerance for float32 is a hundred times the farthest honest variant, since processors of other makers were not measured and the
faults lie far beyond. That for 16 bits is four times the farther of the two formats: a GPU rounds in the same formats, but adds up in another order and
may compute attention in another way; it was not measured on one. Every fault must lie outside.
"""

import json
import os
import subprocess
import sys
from typing import Any

from claims import RESULTS, save_raw, versions, where
from halfbyte.checks.golden import CURVE, LEARNING_RATE, ROW_TOKENS, ROWS_A_STEP, SEED, STEPS

# name -> (environment, precision, fault)
GOLDEN = "1 thread"
HONEST = {
    GOLDEN: ({"OMP_NUM_THREADS": "1"}, "float32", ""),
    "2 threads": ({"OMP_NUM_THREADS": "2"}, "float32", ""),
    "4 threads": ({"OMP_NUM_THREADS": "4"}, "float32", ""),
    "AVX2 in PyTorch": ({"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2"}, "float32", ""),
    "no vector unit in PyTorch": ({"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"}, "float32", ""),
    "AVX2 in MKL": ({"OMP_NUM_THREADS": "1", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}, "float32", ""),
    "SSE4.2 in MKL": ({"OMP_NUM_THREADS": "1", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, "float32", ""),
}
SIXTEEN = {"bfloat16": ({"OMP_NUM_THREADS": "1"}, "bfloat16", ""), "float16": ({"OMP_NUM_THREADS": "1"}, "float16", "")}
FAULTY = {
    name: ({"OMP_NUM_THREADS": "1"}, "float32", name)
    for name in ("fp4", "rate 5 % higher", "first layer not trained", "dropout 0.1", "other seed", "no update")
}
FLOAT32_ROOM, SIXTEEN_ROOM = 100, 4


def run(environment: dict[str, str], precision: str, fault: str) -> list[float]:
    words = [sys.executable, __file__, "--losses", precision, fault]
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{precision} {fault}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def losses(precision: str, fault: str) -> list[float]:
    """In this process, with one thing spoiled."""
    import torch

    from halfbyte.checks import golden
    from halfbyte.recipe import schema

    def change(model: Any) -> None:
        for name, module in model.named_modules():
            if fault == "dropout 0.1" and isinstance(module, torch.nn.ModuleDict) and name.endswith("lora_dropout"):
                module["default"] = torch.nn.Dropout(0.1)
        for name, parameter in model.named_parameters():
            if (fault == "first layer not trained" and ".layers.0." in name) or fault == "no update":
                parameter.requires_grad_(fault == "no update" and parameter.requires_grad)

    if fault == "fp4":
        import halfbyte.model.load  # noqa: F401 - which asks for the real one when it is imported

        schema.NF4 = lambda: schema.FP4(kind="fp4")  # what golden.py imports when it is called
    if fault == "rate 5 % higher":
        golden.LEARNING_RATE *= 1.05
    if fault == "no update":
        golden.LEARNING_RATE = 0.0
    if fault == "other seed":
        golden.SEED += 1
    return golden.train_losses(torch.device("cpu"), precision, change=change)


def farthest(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def main() -> None:
    if "--losses" in sys.argv:
        print(json.dumps(losses(*sys.argv[2:4])))
        return
    file = RESULTS / "golden_curve.json"
    measured = json.loads(file.read_text())["losses"] if file.is_file() and "--anew" not in sys.argv else {}
    for name, variant in {**HONEST, **SIXTEEN, **FAULTY}.items():
        if name not in measured:
            measured[name] = run(*variant)
            print(f"{name}: {farthest(measured[name], measured[GOLDEN]):.2e} from the golden curve", flush=True)
            save_raw(file.name, {"losses": measured})
    far = {name: farthest(curve, measured[GOLDEN]) for name, curve in measured.items()}
    tolerance = {
        "float32": _rounded(FLOAT32_ROOM * max(far[name] for name in HONEST)), "16 bit": _rounded(SIXTEEN_ROOM * max(far[name] for name in SIXTEEN)),
    }  # fmt: skip
    unseen = {kind: [name for name in FAULTY if far[name] <= allowed] for kind, allowed in tolerance.items()}
    save_raw(file.name, {"where": where(), "versions": versions(), "farthest": far, "tolerance": tolerance, "faults_unseen": unseen, "losses": measured})
    made = {"steps": STEPS, "rows_a_step": ROWS_A_STEP, "row_tokens": ROW_TOKENS, "seed": SEED, "learning_rate": LEARNING_RATE, "versions": versions()}
    CURVE.write_text(json.dumps({"losses": measured[GOLDEN], "tolerance": tolerance, "made_with": made}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"tolerance": tolerance, "faults unseen": unseen}, indent=1))


def _rounded(value: float) -> float:
    return float(f"{value:.1e}")


if __name__ == "__main__":
    main()

"""First look at the fast path on a GPU: kernels against their definitions, gradients against the plain path, times, peaks and where they go.

    python benchmarks/fast_probe.py [--shape mistral-7b] [--only kernels agree time profile]
"""

import argparse
import gc
import json
import time
from statistics import median

import torch

from halfbyte.data.batches import IGNORE, Batch
from halfbyte.fast.decoder import FastDecoder
from halfbyte.train.step import batch_logits, summed_loss
from random_base import build_random_base, config, random_batch

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(shape, layers=None, r=16):
    from peft import LoraConfig, get_peft_model

    base = build_random_base(config(shape, layers))
    model = get_peft_model(base, LoraConfig(r=r, lora_alpha=r, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM"))
    generator = torch.Generator("cuda").manual_seed(1)
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.data = p.data.float()
            if "lora_B" in name:
                p.data.normal_(std=0.01, generator=generator)
    return model.train()


def kernels():
    from halfbyte.kernels import gpu, reference

    torch.manual_seed(0)
    T, D, F = 333, 4096, 14336
    b = lambda *s: torch.randn(*s, device="cuda", dtype=torch.bfloat16)
    def pad(t, w):
        return torch.empty(t, w + 64, device="cuda", dtype=torch.bfloat16)[:, :w]
    def compare(name, make):
        exact = make(reference, torch.float64)
        ours, plain = make(gpu, torch.bfloat16), make(reference, torch.bfloat16)
        print(name, [(round(float((o.double() - e.double()).norm() / e.double().norm()), 7), round(float((p.double() - e.double()).norm() / e.double().norm()), 7)) for o, p, e in zip(ours, plain, exact)], flush=True)
    x, y, w, g, c = b(T, D), b(T, D), b(D), b(T, D), b(T, D)
    def norms(ops, t):
        o, n, m, s, d, a = (pad(T, D).to(t) for _ in range(6))
        ops.rms_norm(x.to(t), w.to(t), 1e-5, o); ops.add_rms_norm(x.to(t), y.to(t), w.to(t), 1e-5, s, n)
        ops.rms_norm_backward(g.to(t), x.to(t), w.to(t), 1e-5, c.to(t), d, a)
        return [o, n, d, a]
    compare("norm", norms)
    q, wn = b(T, 4096), b(128)
    angle = torch.rand(T, 64, device="cuda") * 6
    cos, sin = angle.cos(), angle.sin()
    def rotary(ops, t):
        o, p, d, e = (pad(T, 4096).to(t) for _ in range(4))
        ops.rotate(q.to(t), cos, sin, 128, o); ops.rotate(q.to(t), cos, sin, 128, p, wn.to(t), 1e-6)
        ops.rotate_backward(g.to(t), cos, sin, 128, d); ops.rotate_backward(g.to(t), cos, sin, 128, e, q.to(t), wn.to(t), 1e-6)
        return [o, p, d, e]
    compare("rotary", rotary)
    gu, dh = b(T, 2 * F), b(T, F)
    def swiglu(ops, t):
        a, h, o = gu.to(t, copy=True), dh.to(t, copy=True), pad(T, F).to(t)
        ops.swiglu(a, o); ops.swiglu_backward(a, h)
        return [o, a, h]
    compare("swiglu", swiglu)
    lo, ta = b(T, 32000) * 3, torch.randint(0, 32000, (T,), device="cuda")
    def ce(ops, t):
        l, s = lo.to(t, copy=True), torch.empty(T, device="cuda", dtype=torch.float64 if t == torch.float64 else torch.float32)
        ops.cross_entropy(l, ta, torch.tensor(0.01, device='cuda'), s)
        return [s, l]
    compare("cross entropy", ce)
    import bitsandbytes.functional as B
    W = b(F, D) * 0.02
    packed, state = B.quantize_4bit(W, quant_type="nf4", compress_statistics=True)
    out = torch.empty(F, D + 64, device="cuda", dtype=torch.bfloat16)
    nested = (state.state2.absmax, state.state2.code, state.offset, state.state2.blocksize)
    gpu.dequantise_nf4(packed, state.absmax, state.code, out[:, :D], nested)
    theirs = B.dequantize_4bit(packed, state)
    print("nf4 bit-exact to bitsandbytes:", torch.equal(out[:, :D], theirs), float((out[:, :D].float() - theirs.float()).abs().max()))
    def speed(f, bytes_):
        for _ in range(5): f()
        s, e = torch.cuda.Event(True), torch.cuda.Event(True)
        s.record()
        for _ in range(50): f()
        e.record(); torch.cuda.synchronize()
        ms = s.elapsed_time(e) / 50
        return f"{ms * 1e3:.0f} us, {bytes_ / ms / 1e6:.0f} GB/s"
    n = F * D
    print("nf4 ours", speed(lambda: gpu.dequantise_nf4(packed, state.absmax, state.code, out[:, :D], nested), n * 2.516), "theirs", speed(lambda: B.dequantize_4bit(packed, state), n * 2.516))
    T = 8192
    x, y, g, c, o, n2, s = (b(T, D + 64)[:, :D] for _ in range(7))
    print("norm", speed(lambda: gpu.rms_norm(x, w, 1e-5, o), T * D * 4), "add_norm", speed(lambda: gpu.add_rms_norm(x, y, w, 1e-5, s, o), T * D * 8),
          "norm_bwd", speed(lambda: gpu.rms_norm_backward(g, x, w, 1e-5, c, o, n2), T * D * 10))
    gu, h = b(T, 2 * F + 64)[:, : 2 * F], b(T, F)
    print("swiglu", speed(lambda: gpu.swiglu(gu, h), T * F * 6), "bwd", speed(lambda: gpu.swiglu_backward(gu, h), T * F * 12))
    angle = torch.rand(T, 64, device="cuda")
    qk = b(T, 6144)
    print("rotate", speed(lambda: gpu.rotate(qk[:, :5120], angle, angle, 128, qk[:, :5120]), T * 5120 * 4))
    lo, ta, s = b(2048, 32000), torch.randint(0, 32000, (2048,), device="cuda"), torch.empty(2048, device="cuda")
    print("ce", speed(lambda: gpu.cross_entropy(lo, ta, torch.tensor(1e-4, device='cuda'), s), 2048 * 32000 * 6), flush=True)


def agree(shape):
    model = adapted(shape, 4)
    generator = torch.Generator().manual_seed(2)
    cases = {"2x1000": random_batch(32000, 2, 1000, generator), "packed 2x1024": random_batch(32000, 2, 1024, generator, packed=3)}
    one = random_batch(32000, 3, 700, generator)
    labels = one.labels.clone()
    for row, length in enumerate((700, 333, 65)):
        labels[row, length:] = IGNORE
    cases["padded 3x700"] = Batch(one.ids, labels, (700, 333, 65))
    for name, batch in cases.items():
        scale = 1.0 / batch.supervised
        def plain(dtype):
            model.zero_grad(set_to_none=True)
            on = batch.to(torch.device("cuda"))
            loss = summed_loss(batch_logits(model, on, dtype), on.labels) * scale
            loss.backward()
            return float(loss), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        want_loss, want = plain(torch.bfloat16)
        for keep in ("all", "thin", "input"):
            model.zero_grad(set_to_none=True)
            fast = FastDecoder(model, torch.bfloat16, [keep] * 4)
            loss = float(fast.accumulate(batch, scale))
            off = {n: float((p.grad - want[n]).norm() / want[n].norm()) for n, p in model.named_parameters() if p.requires_grad}
            worst = max(off, key=off.get)
            print("agree", name, keep, loss, want_loss, "worst", worst.split("layers.")[1], round(off[worst], 4), "median", round(median(off.values()), 4), flush=True)


def timing(shape):
    model = adapted(shape)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    generator = torch.Generator().manual_seed(3)
    L = len(model.get_base_model().model.layers)
    def step(fast, batch):
        loss = fast.accumulate(batch, 1 / (batch.supervised))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step(); optimizer.zero_grad(set_to_none=True)
        return loss
    P = list(range(L - 2))
    cases = [
        (4, 2048, "all", {}), (4, 2048, "all", {"record": True}), (4, 2048, "all", {"record": True, "resident": range(14)}),
        (4, 2048, "input", {"parked": P}), (4, 2048, "attention", {"parked": P}), (4, 2048, "attention", {"parked": P, "record": True}),
        (1, 2048, "all", {"record": True}), (1, 2048, "all", {"record": True, "resident": range(6)}),
        (1, 2048, "input", {"parked": P, "tight": True}), (1, 2048, "input", {"parked": P, "tight": True, "record": True}), (1, 2048, "attention", {"parked": P, "record": True}),
        (1, 16384, "attention", {"parked": P}), (1, 16384, "input", {"parked": P}),
    ]
    for rows, tokens, keep, how in cases:
        batch = random_batch(32000, rows, tokens, generator)
        for p in parameters: p.grad = None
        fast = FastDecoder(model, torch.bfloat16, [keep] * L, **how)
        gc.collect(); torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
        times, losses = [], []
        for n in range(10 if tokens > 10000 else 14):
            if n == 4: torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize(); began = time.perf_counter()
            loss = step(fast, batch)
            torch.cuda.synchronize(); times.append((time.perf_counter() - began) * 1e3); losses.append(round(float(loss), 4))
        print("TIME", f"{rows}x{tokens}", keep, {k: (len(v) if k in ("parked", "resident") else v) for k, v in how.items()}, f"{median(times[4:]):.1f} ms, first {times[0]:.0f}, {times[1]:.0f}, peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB, reserved {torch.cuda.max_memory_reserved() / 1e9:.2f}", losses[:2], losses[-1], "host", round(fast.shelf.bytes / 1e9, 2), flush=True)
        if (rows, keep, tuple(how)) in ((4, "all", ()), (1, "all", ("record",))):
            from torch.profiler import ProfilerActivity, profile
            with profile(activities=[ProfilerActivity.CUDA]) as p:
                step(fast, batch); torch.cuda.synchronize()
            events = sorted((e for e in p.key_averages() if e.self_device_time_total > 0), key=lambda e: -e.self_device_time_total)
            print("total kernels ms", sum(e.self_device_time_total for e in events) / 1e3, sum(e.count for e in events))
            for e in events[:34]:
                print(f"{e.self_device_time_total / 1e3:9.2f} ms {e.count:5d} x  {e.key[:90]}")
        del fast


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="mistral-7b")
    parser.add_argument("--only", nargs="+", default=["kernels", "agree", "time"])
    args = parser.parse_args()
    for part in args.only:
        {"kernels": kernels, "agree": lambda: agree(args.shape), "time": lambda: timing(args.shape)}[part]()

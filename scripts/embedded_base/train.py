"""Pre-trains the embedded base (Mistral architecture, 11 M parameters) on one GPU, in about nine minutes.

    python scripts/embedded_base/train.py PREPARED_FOLDER OUT_FOLDER --steps 3900
    python scripts/embedded_base/train.py PREPARED_FOLDER OUT_FOLDER_2 --init OUT_FOLDER --steps 250 --learning-rate 6e-4 --decay 1 --short-share 0.15

The decoder is written out here, so that what is trained stands on one screen; export.py checks that
transformers' MistralForCausalLM gives the same logits from the saved weights. Hidden matrices are
trained with Muon (Jordan et al. 2024, scaled as in arXiv 2502.16982), everything else with AdamW.
Schedule: warm-up, constant, linear decay (WSD). In the decay the chat share is raised; a second, short
run from the first one's weights adds brief exchanges, so that the base knows when to stop.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WIDTH, LAYERS, HEADS, KV_HEADS, HIDDEN, VOCABULARY = 320, 8, 10, 2, 896, 8192
HEAD_WIDTH = WIDTH // HEADS
ROPE_THETA = 10_000.0
CONTEXT_TOKENS = 1024
NORM_EPS = 1e-5


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, halves convention. x (B, H, T, HEAD_WIDTH)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Layer(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.input_norm = nn.Parameter(torch.ones(WIDTH))
        self.post_norm = nn.Parameter(torch.ones(WIDTH))
        self.q = nn.Linear(WIDTH, HEADS * HEAD_WIDTH, bias=False)
        self.k = nn.Linear(WIDTH, KV_HEADS * HEAD_WIDTH, bias=False)
        self.v = nn.Linear(WIDTH, KV_HEADS * HEAD_WIDTH, bias=False)
        self.o = nn.Linear(HEADS * HEAD_WIDTH, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        batch, tokens, _ = x.shape
        normed = F.rms_norm(x, (WIDTH,), self.input_norm, NORM_EPS)
        heads = lambda y, count: y.view(batch, tokens, count, HEAD_WIDTH).transpose(1, 2)  # noqa: E731
        query = rotate(heads(self.q(normed), HEADS), cos, sin)
        key = rotate(heads(self.k(normed), KV_HEADS), cos, sin)
        value = heads(self.v(normed), KV_HEADS)
        seen = F.scaled_dot_product_attention(query, key.to(query.dtype), value, is_causal=True, enable_gqa=True)
        x = x + self.drop(self.o(seen.transpose(1, 2).reshape(batch, tokens, WIDTH)))
        normed = F.rms_norm(x, (WIDTH,), self.post_norm, NORM_EPS)
        return x + self.drop(self.down(F.silu(self.gate(normed)) * self.up(normed)))


class Decoder(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(WIDTH))
        nn.init.normal_(self.embed.weight, std=0.02)
        for layer in self.layers:
            for name, weight in layer.named_parameters():
                if weight.ndim == 2:
                    into_residual = name.split(".")[0] in ("o", "down")
                    nn.init.normal_(weight, std=0.02 / (2 * LAYERS) ** 0.5 if into_residual else 0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """ids (B, T), targets (B, T) -> mean loss, (). The head shares the embedding."""
        positions = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32)
        rates = ROPE_THETA ** (-torch.arange(0, HEAD_WIDTH, 2, device=ids.device, dtype=torch.float32) / HEAD_WIDTH)
        angles = torch.outer(positions, rates)
        cos, sin = angles.cos(), angles.sin()
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, cos.to(x.dtype), sin.to(x.dtype))
        logits = F.linear(F.rms_norm(x, (WIDTH,), self.norm, NORM_EPS), self.embed.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def hugging_face_names(model: Decoder) -> dict[str, Tensor]:
    """The weights under the names of transformers' MistralForCausalLM; the tensors themselves, not copies."""
    state = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm}
    for index, layer in enumerate(model.layers):
        prefix = f"model.layers.{index}"
        state[f"{prefix}.input_layernorm.weight"] = layer.input_norm
        state[f"{prefix}.post_attention_layernorm.weight"] = layer.post_norm
        for ours, theirs in (
            ("q", "self_attn.q_proj"),
            ("k", "self_attn.k_proj"),
            ("v", "self_attn.v_proj"),
            ("o", "self_attn.o_proj"),
            ("gate", "mlp.gate_proj"),
            ("up", "mlp.up_proj"),
            ("down", "mlp.down_proj"),
        ):
            state[f"{prefix}.{theirs}.weight"] = getattr(layer, ours).weight
    return {name: weight.detach() for name, weight in state.items()}


def load_weights(model: Decoder, file: Path) -> None:
    stored = load_file(file)
    for name, weight in hugging_face_names(model).items():
        weight.copy_(stored[name])


class Stream:
    """Windows of CONTEXT_TOKENS + 1 from one token file, in a new order and from a new offset each epoch."""

    def __init__(self, path: Path, generator: np.random.Generator, device: str):
        self.tokens = torch.from_numpy(np.fromfile(path, dtype=np.uint16).astype(np.int32)).to(device)
        self.generator, self.device, self.starts, self.epochs = generator, device, torch.empty(0, dtype=torch.long), -1

    def draw(self, rows: int) -> Tensor:
        """(rows, CONTEXT_TOKENS + 1) int64."""
        while len(self.starts) < rows:
            offset = int(self.generator.integers(CONTEXT_TOKENS))
            starts = np.arange(offset, len(self.tokens) - CONTEXT_TOKENS - 1, CONTEXT_TOKENS)
            self.starts = torch.cat([self.starts, torch.from_numpy(self.generator.permutation(starts))])
            self.epochs += 1
        taken, self.starts = self.starts[:rows], self.starts[rows:]
        index = taken.to(self.device)[:, None] + torch.arange(CONTEXT_TOKENS + 1, device=self.device)
        return self.tokens[index].long()


@torch.no_grad()
def mean_loss(model: Decoder, path: Path, device: str) -> float:
    tokens = torch.from_numpy(np.fromfile(path, dtype=np.uint16).astype(np.int64)).to(device)
    rows = (len(tokens) - 1) // CONTEXT_TOKENS
    ids = tokens[: rows * CONTEXT_TOKENS].view(rows, CONTEXT_TOKENS)
    targets = tokens[1 : rows * CONTEXT_TOKENS + 1].view(rows, CONTEXT_TOKENS)
    losses = [model(i, t) * i.numel() for i, t in zip(ids.split(32), targets.split(32), strict=True)]
    return float(sum(losses) / (rows * CONTEXT_TOKENS))


def learning_rate_share(progress: float, decay: float) -> float:
    """Constant, then linear to 2 %; progress and decay in 0..1 of the run."""
    return 1.0 if progress < 1 - decay else max(0.02, (1 - progress) / decay)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prepared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3900)
    parser.add_argument("--seconds", type=float, default=3600, help="stop here even if steps are left; the decay follows whichever is nearer")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.6)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--decay", type=float, default=0.85)
    parser.add_argument("--chat-share", type=float, default=0.22, help="share of chat rows while the rate decays")
    parser.add_argument("--short-share", type=float, default=0.0, help="share of brief exchanges while the rate decays")
    parser.add_argument("--init", type=Path, help="folder with the weights to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-every", type=int, default=250)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    generator = np.random.default_rng(args.seed)
    streams = {name: Stream(args.prepared / f"train-{name}.bin", generator, device) for name in ("novels", "prose", "chat", "short")}

    model = Decoder(args.dropout).to(device)
    if args.init:
        load_weights(model, args.init / "model.safetensors")
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.learning_rate, weight_decay=args.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    run = torch.compile(model) if device == "cuda" else model
    sizes = {name: len(stream.tokens) for name, stream in streams.items() if name != "short"}
    plain_share = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    decay_share = {"prose": plain_share["prose"], "chat": args.chat_share, "short": args.short_share}
    start, curve, accumulation = time.monotonic(), [], max(1, args.rows // 64)

    def evaluate(step: int, loss: float) -> None:
        model.eval()
        with torch.autocast(device, torch.bfloat16):
            row = {
                "step": step,
                "seconds": round(time.monotonic() - start, 1),
                "tokens": step * args.rows * CONTEXT_TOKENS,
                "train_loss": loss,
                "novels": mean_loss(model, args.prepared / "held-out-novels.bin", device),
                "chat": mean_loss(model, args.prepared / "held-out-chat.bin", device),
                "epochs": {name: stream.epochs for name, stream in streams.items()},
            }
        model.train()
        curve.append(row)
        print(json.dumps(row), flush=True)

    step, loss, warm_up = 0, float("nan"), max(1, min(200, args.steps // 10))
    while step < args.steps and time.monotonic() - start < args.seconds:
        progress = max(step / args.steps, (time.monotonic() - start) / args.seconds)
        scale = learning_rate_share(progress, args.decay) * min(1.0, (step + 1) / warm_up)
        shares = plain_share if progress < 1 - args.decay else decay_share
        counts = {name: round(shares[name] * args.rows) for name in ("prose", "chat", "short") if round(shares.get(name, 0) * args.rows)}
        counts["novels"] = args.rows - sum(counts.values())  # the same number of rows in every step: one compiled shape
        rows = torch.cat([streams[name].draw(count) for name, count in counts.items()])
        rows = rows[torch.randperm(len(rows), device=rows.device)]
        for part in rows.chunk(accumulation):
            with torch.autocast(device, torch.bfloat16):
                part_loss = run(part[:, :-1], part[:, 1:])
            (part_loss / accumulation).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % args.eval_every == 0:
            loss = float(part_loss.detach())
            evaluate(step, loss)
    evaluate(step, float(part_loss.detach()))

    state = {name: weight.to(torch.bfloat16).contiguous().cpu() for name, weight in hugging_face_names(model).items()}
    save_file(state, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "curve.json").write_text(
        json.dumps(
            {
                "arguments": {k: str(v) for k, v in vars(args).items() if not isinstance(v, Path)},
                "torch": torch.__version__,
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "tokens_per_epoch": sizes,
                "curve": curve,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

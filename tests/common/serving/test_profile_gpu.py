"""The profiler around an injected clock; its CUDA path needs a GPU and is not run here."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from common.hardware.attention import causal_tiles
from common.hardware.operators import H100, OperatorTables, read_table
from common.serving.measured import layer_seconds
from common.serving.models import model
from common.serving.operator_calls import AttentionCall, CopyCall, LayerCall, Sample
from common.serving.profile_gpu import NO_GPU, Grid, main, profile

TINY = Grid(
    models=("llama-2-7b",),
    degrees=(1,),
    tokens=(1, 64, 1024),
    heads=((32, 32, 128),),
    prompts=(128, 4096, 8192),
    chunks=(256, 2048),
    chunk_contexts=(4096,),
    batches=(1, 64),
    contexts=(128, 1024, 4096),
    copy_bytes=(4096, 1 << 20),
    block_bytes=1 << 20,
    blocks=(1, 4),
    layer_batches=((((128, 0), (128, 2048)), 4, 512),),
)


class Ideal:
    """A card with 10 SMs, 100 TFLOP/s and 1 TB/s whose kernels start in 1 us."""

    memory = 16 << 30

    def device(self) -> dict[str, str | int]:
        return {"name": "Ideal 16GB", "sms": 10, "mem": self.memory, "attention_timing": "graph"}

    def linear(self, m: int, k: int, n: int) -> Sample:
        return self._sample(max(2 * m * k * n / 100e12, 2 * (m * k + k * n + m * n) / 1e12))

    def attention(self, call: AttentionCall) -> Sample:
        if call.phase == "decode":
            return self._sample(call.bytes / 1e12)
        full = [call.kv_len] * math.ceil(call.q_len / 128)
        tiles = sorted(
            (causal_tiles(call.q_len, 0) if call.phase == "prefill_causal" else full) * call.heads
        )[::-1]
        return self._sample(sum(20e-9 * keys for keys in tiles[::10]))

    def copy(self, call: CopyCall) -> Sample:
        return self._sample(2 * call.bytes / 1e12 - 1e-6 if call.kind == "device_copy" else call.bytes / 20e9)

    def layers(self, call: LayerCall) -> tuple[Sample, Sample]:
        return self._sample(2e-3), self._sample(1e-3)

    def _sample(self, seconds: float) -> Sample:
        return Sample(seconds + 1e-6, seconds + 0.9e-6, seconds + 1.1e-6)


@pytest.mark.parametrize("name", ["linear_bf16.csv", "attention_bf16.csv", "copies.csv", "layers_bf16.csv"])
def test_tables_have_the_columns_of_the_h100_tables(name: str, tmp_path: Path) -> None:
    profile(tmp_path / "card", Ideal(), TINY)
    assert list(read_table(tmp_path / "card" / name)[0]) == list(read_table(H100 / name)[0])


def test_written_tables_are_read_back_with_the_cards_own_constants(tmp_path: Path) -> None:
    profile(tmp_path / "card", Ideal(), TINY)
    tables = OperatorTables.load(tmp_path / "card")
    assert tables.name == "Ideal 16GB" and tables.memory_bytes == Ideal.memory
    assert tables.linear.kernel_seconds == pytest.approx(1e-6, rel=0.01)
    assert tables.copy_bandwidth == pytest.approx(1e12)
    assert tables.attention.prefill.token == pytest.approx(20e-9, rel=0.01)
    assert tables.attention.decode[32, 32].bandwidth == pytest.approx(1e12, rel=0.02)
    assert tables.linear_seconds(64, 4096, 12288) == Ideal().linear(64, 4096, 12288).seconds


def test_written_tables_predict_layers(tmp_path: Path) -> None:
    profile(tmp_path / "card", Ideal(), TINY)
    tables = OperatorTables.load(tmp_path / "card")
    shape = model("llama-2-7b")
    weights = 2 * sum(k * n for _, k, n in shape.linears()) / 1e12
    assert weights < layer_seconds(shape, 1, [], 1, 128, tables) < 1.5 * weights


def test_layer_rows_name_their_batches_as_the_h100_tables_do(tmp_path: Path) -> None:
    profile(tmp_path / "card", Ideal(), TINY)
    row = read_table(tmp_path / "card" / "layers_bf16.csv")[0]
    assert row["prefill"] == "128/128;128/2176"
    assert (row["decode_batch"], row["decode_kv_len"], row["tokens"]) == ("4", "512", "260")
    assert float(row["seconds_eager"]) > float(row["seconds_graph"])


def test_calls_larger_than_the_share_of_memory_are_left_out_and_counted(tmp_path: Path) -> None:
    # Its KV is 64 sequences x 4096 tokens x 32 heads x 128 x 4 bytes = 4 GiB, more than 10% of 16 GiB.
    left_out = profile(tmp_path / "card", Ideal(), TINY, memory_share=0.1)
    kept = {(row["batch"], row["kv_len"]) for row in read_table(tmp_path / "card" / "attention_bf16.csv")}
    assert ("64", "4096") not in kept and ("64", "1024") in kept
    assert left_out["attention_bf16.csv"] == 1 and left_out["copies.csv"] == 0


def test_a_card_too_small_for_whole_layers_gets_the_other_tables(tmp_path: Path) -> None:
    assert profile(tmp_path / "card", Ideal(), TINY, memory_share=0.1)["layers_bf16.csv"] == 1
    assert not (tmp_path / "card" / "layers_bf16.csv").exists()
    assert OperatorTables.load(tmp_path / "card").linear.points


def test_a_card_too_small_for_any_linear_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing of linear_bf16.csv fits"):
        profile(tmp_path / "card", Ideal(), TINY, memory_share=1e-4)


def test_calls_that_run_out_of_memory_are_left_out(tmp_path: Path) -> None:
    class Small(Ideal):
        def linear(self, m: int, k: int, n: int) -> Sample:
            if m == 1024:
                raise MemoryError
            return super().linear(m, k, n)

    assert profile(tmp_path / "card", Small(), TINY)["linear_bf16.csv"] == 4
    assert {row["m"] for row in read_table(tmp_path / "card" / "linear_bf16.csv")} == {"1", "64"}


def test_a_run_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    class Broken(Ideal):
        def layers(self, call: LayerCall) -> tuple[Sample, Sample]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(tmp_path / "card", Broken(), TINY)
    assert list(tmp_path.iterdir()) == []


def test_existing_tables_are_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="name another folder"):
        profile(tmp_path, Ideal(), TINY)


def test_progress_counts_to_the_end_of_each_table(tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}
    profile(
        tmp_path / "card", Ideal(), TINY, report=lambda name, done, total: seen.update({name: (done, total)})
    )
    assert len(seen) == 4 and all(done == total > 0 for done, total in seen.values())


def test_default_grid_covers_every_measured_shape_and_set_of_heads_of_the_h100() -> None:
    measured = {(int(row["k"]), int(row["n"])) for row in read_table(H100 / "linear_bf16.csv")}
    assert measured <= {(call.k, call.n) for call in Grid().linear_calls()}
    heads = {(int(r["heads"]), int(r["kv_heads"])) for r in read_table(H100 / "attention_bf16.csv")}
    assert heads == {(call.heads, call.kv_heads) for call in Grid().attention_calls()}


def test_command_writes_tables_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "card"), "--quick"], Ideal()) == 0
    assert str(tmp_path / "card") in capsys.readouterr().out
    assert OperatorTables.load(tmp_path / "card").name == "Ideal 16GB"


def test_command_on_existing_folder_fails_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)], Ideal()) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_gpu_the_command_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.serving.profile_gpu.cuda_timer", lambda: None)
    assert main([]) == 1
    assert capsys.readouterr().err == NO_GPU + "\n"


def test_torch_clock_runs_every_operator_on_the_cpu() -> None:
    """Checks the operators' shapes and code; a CPU's times say nothing of a GPU's."""
    timer_module = pytest.importorskip("common.serving.torch_timer")
    timer = timer_module.TorchTimer("cpu", repeats=2)
    shape = replace(model("llama-3-8b"), hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96)
    samples = [
        timer.linear(3, 64, 32),
        timer.attention(AttentionCall("prefill_causal", 4, 4, 16, 1, 8, 8)),
        timer.attention(AttentionCall("chunk_full", 4, 2, 16, 1, 4, 8)),
        timer.attention(AttentionCall("decode", 4, 2, 16, 2, 1, 8)),
        timer.copy(CopyCall("pageable", "d2h", 4096, 1)),
        timer.copy(CopyCall("pinned_blocks_dispatch_only", "h2d", 4096, 4)),
        timer.copy(CopyCall("device_copy", "d2d", 4096, 1)),
        *timer.layers(LayerCall(shape, 2, ((4, 0), (4, 0), (3, 5)), 2, 9)),
        *timer.layers(LayerCall(replace(shape, gated=False), 1, (), 3, 9)),
    ]
    assert all(0 < s.p05 <= s.seconds <= s.p95 for s in samples)


def test_decoder_layer_attends_as_the_batch_says() -> None:
    """The layer's output for a prompt equals attention computed row by row from its own weights."""
    torch = pytest.importorskip("torch")
    from common.serving.torch_timer import DecoderLayer

    torch.manual_seed(0)
    shape = replace(model("llama-3-8b"), hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=48)
    layer = DecoderLayer(LayerCall(shape, 1, ((5, 0),), 0, 0), lambda *size: torch.randn(size))
    x = torch.randn(5, 32)

    def norm(y: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
        return y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + torch.finfo(y.dtype).eps) * scale

    query, key, value = (norm(x, layer.scales[0]) @ layer.weights["qkv"].T).split([32, 16, 16], dim=-1)
    rows = []
    for position in range(5):
        heads = []
        for head in range(2):
            scores = key[: position + 1] @ query[position, 16 * head : 16 * head + 16] / 4
            heads.append(torch.softmax(scores, 0) @ value[: position + 1])
        rows.append(torch.cat(heads))
    y = x + torch.stack(rows) @ layer.weights["attention_output"].T
    gate, up = (norm(y, layer.scales[1]) @ layer.weights["mlp_up"].T).chunk(2, dim=-1)
    expected = y + (torch.nn.functional.silu(gate) * up) @ layer.weights["mlp_down"].T
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)

"""What four ranks have trained and saved is exported by one process without DeepSpeed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from megaqk.checkpoint.reader import open_checkpoint
from megaqk.config.loading import restore_config
from megaqk.data.tokenizer import load_tokenizer
from megaqk.model.batch import plain_positions
from megaqk.model.context import model_context
from megaqk.model.decoder import Decoder
from tests.distributed import commands
from tests.harness import run_distributed

EXPORT = """
import sys
from megaqk.cli import main
status = main(sys.argv[1:])
assert not {"deepspeed", "transformers"} & set(sys.modules)
sys.exit(status)
"""


def test_export_of_tensor_2_pipeline_2_zero_1(
    tmp_path: Path, data_section: dict[str, Any], write_config: Callable[..., Path]
) -> None:
    config = write_config(
        tmp_path,
        model={"init_std": 0.3},
        parallel={"tensor": 2, "pipeline": 2, "zero_stage": 1},
        training={"steps": 2, "global_batch_size": 4, "micro_batch_size": 2, "sequence_length": 48},
        evaluation={"batches": 0},
    )
    assert run_distributed(commands.run_command, 4, ["pretrain", str(config)], init=False, timeout=120) == [0] * 4
    folder = tmp_path / "hf"
    command = [sys.executable, "-c", EXPORT, "export", str(tmp_path / "run"), "--output", str(folder)]
    subprocess.run(command, check=True, timeout=120)

    checkpoint = open_checkpoint(tmp_path / "run")
    written, rows = restore_config(checkpoint.manifest["config"]), checkpoint.weight("embedding.weight").shape[0]
    tokens = checkpoint.manifest["identity"]["tokens"]
    ours = Decoder(model_context(written, tokens=tokens, rows=rows)).eval().requires_grad_(False)
    for name, parameter in ours.global_parameters().items():
        parameter.copy_(checkpoint.weight(name))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = Path(data_section["text"]).read_text()[:300]
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    corpus = next(Path(data_section["cache_dir"]).glob("*/tokenizer.*"))
    assert ids[0].tolist() == load_tokenizer(corpus).encode(text).tolist()
    ids = ids[:, :48]
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
    expected = ours.logits((ids, plain_positions(ids)))
    assert (theirs - expected).abs().max() < 1e-5 * expected.abs().max()

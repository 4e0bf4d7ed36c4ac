"""Load every quantized model of a folder, and write what each makes of its data: in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tico.quantization import load_quantized
from wrapped_modules import ROWS_BY_NAME


def main(folder: Path) -> None:
    """Write ``outputs.pt`` into `folder`, in which each row's model lies under the row's number."""
    outputs = {}
    for number, (name, row) in enumerate(ROWS_BY_NAME.items()):
        model = load_quantized(folder / str(number), row.model())
        outputs[name] = model(*row.data())
    torch.save(outputs, folder / "outputs.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

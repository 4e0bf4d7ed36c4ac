"""Programs of torch.export: how a converted model becomes one, and how files of them are loaded."""

from tico_export.program._exported import exported, load_program, register_dialect

__all__ = ["exported", "load_program", "register_dialect"]

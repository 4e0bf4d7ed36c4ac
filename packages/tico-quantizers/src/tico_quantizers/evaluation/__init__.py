"""How far a quantized model is from the float one: perplexity, block by block, and part by part."""

from tico_quantizers.evaluation._ablate import ablate
from tico_quantizers.evaluation._ablating import ablation
from tico_quantizers.evaluation._ablation import Ablation, AblationLine
from tico_quantizers.evaluation._compare import compare
from tico_quantizers.evaluation._comparison import BlockError, Comparison
from tico_quantizers.evaluation._divergence import divergence
from tico_quantizers.evaluation._outputs import logits_of, rows_of
from tico_quantizers.evaluation._perplexity import perplexity
from tico_quantizers.evaluation._selection import QuantizedPart, Selection

__all__ = [
    "Ablation",
    "AblationLine",
    "BlockError",
    "Comparison",
    "QuantizedPart",
    "Selection",
    "ablate",
    "ablation",
    "compare",
    "divergence",
    "logits_of",
    "perplexity",
    "rows_of",
]

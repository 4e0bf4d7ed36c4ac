"""How far a quantized model is from the float one: perplexity, block by block, and part by part."""

from tico_quantizers.evaluation._ablate import ablate
from tico_quantizers.evaluation._ablating import ablation
from tico_quantizers.evaluation._ablation import Ablation, AblationLine
from tico_quantizers.evaluation._compare import compare
from tico_quantizers.evaluation._comparison import BlockError, Comparison
from tico_quantizers.evaluation._divergence import divergence
from tico_quantizers.evaluation._outputs import logits_of, rows_of
from tico_quantizers.evaluation._perplexity import perplexity
from tico_quantizers.evaluation._seen import Bin, SeenPoint, SeenPoints
from tico_quantizers.evaluation._selection import QuantizedPart, Selection
from tico_quantizers.evaluation._watch_points import watch_points

__all__ = [
    "Ablation",
    "AblationLine",
    "Bin",
    "BlockError",
    "Comparison",
    "QuantizedPart",
    "SeenPoint",
    "SeenPoints",
    "Selection",
    "ablate",
    "ablation",
    "compare",
    "divergence",
    "logits_of",
    "perplexity",
    "rows_of",
    "watch_points",
]

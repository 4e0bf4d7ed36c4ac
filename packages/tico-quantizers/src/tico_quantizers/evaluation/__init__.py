"""How far a quantized model is from the float one: perplexity, and block by block."""

from tico_quantizers.evaluation._compare import compare
from tico_quantizers.evaluation._comparison import BlockError, Comparison
from tico_quantizers.evaluation._divergence import divergence
from tico_quantizers.evaluation._outputs import logits_of, rows_of
from tico_quantizers.evaluation._perplexity import perplexity

__all__ = ["BlockError", "Comparison", "compare", "divergence", "logits_of", "perplexity", "rows_of"]

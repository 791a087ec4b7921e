"""All tolerances of the tests, each with its reason."""

# float32 has 24 bits: one rounding is 6e-8. The same gradient summed in another order (1 x 8 rows, 8 x 1 row, with
# more or less padding) differs by a few hundred roundings at most; a wrong weight of one row differs by 1e-2.
SAME_GRADIENT = 1e-5

# The same for the loss of a batch, a sum of a few hundred terms.
SAME_LOSS = 1e-6

# Losses of a few steps whose rows were summed in another order: each step's rounding moves the weights of the next
# (2e-7 after four steps of the toy).
SPLIT_LOSS = 2e-6

# exp of a mean of equal float32 losses: log(320) = 5.77 is rounded once (4e-8 relative), exp multiplies that by 5.77.
PERPLEXITY = 1e-6

# bfloat16 has 8 bits (one rounding is 4e-3), float16 11; a few layers and a few steps add up. A forgotten loss scale is a factor of 65,536,
# a forgotten mean over the batches a factor of 2.
HALF_PRECISION = 0.1

# The fast path in float64 against autograd through transformers in float64, in parts of a matrix's largest number. transformers computes norms, rotary
# tables and eager attention's softmax in float32 whatever the model's type is: some tens of roundings of 6e-8. A forgotten term is 1e-1.
FAST_EXACT = 5e-6

# The same in float32, both ways: roundings of 6e-8 in a few hundred terms of each sum, through all layers and back.
FAST_FLOAT32 = 1e-4

# Kernels in float64 against autograd in float64: 1e-16 times the terms of a sum.
KERNEL_EXACT = 1e-11

# The interpreted kernels in float32 against float64: some roundings of 6e-8, in parts of the largest number.
KERNEL_FLOAT32 = 3e-6

# The fast path in bfloat16 twice on a GPU: attention's backward pass adds up in another order each time (atomics), which turns a last digit of bfloat16,
# 4e-3, in few of the numbers. An adapter of the step before, or a document too many, is 1e-1.
FAST_REPEATED = 5e-3

# Products in 8 bits (E4M3), in parts of a result's length. A number is off by up to 2^-4 of itself, 2.6 % in
# the mean square; both factors are: 3.7 %.
FP8_FROZEN = 0.045

# The adapter's part of them, as pairs of 8-bit numbers: two factors of 8 bits, each off by up to 2^-8, a third of that in the mean square.
FP8_ADAPTER = 2**-8

# Gradients of a toy's adapters through all layers with such products, beside those without: 3.7 % for each product that lies between, as random numbers add up.
# (0.25 seen at most; a forgotten scale is 1.)
FP8_GRADIENT = 0.35

"""Exact arithmetic for the entropy path: the same bits in numpy and in torch, on every IEEE-754 machine.

Encoder and decoder must derive identical tables from what was coded so far, on whatever machine they run. Two rules
make that hold at the speed of integer dot products:

1. *Sums are exact.* Activations are integer codes, round(x * 2^e) clamped to +-8191 (what goes into sigmoids and exp:
   +-2047) and held in float32; weights are integers. Export scales each output channel o so that
   sum_i |w_oi| * 8191 < 2^31 over the channels i of each input of a layer. No partial sum then leaves int32, nor the
   exact range of the float64 that the reference sums in, so the order of summation (BLAS kernel, threads, FMA) cannot
   matter.
2. *Everything else is elementwise*: one IEEE operation at a time on arrays of one dtype, and never a library function
   whose last bit may differ between machines. exp, the sigmoid and 1/sqrt are built here from adds, multiplies and
   powers of two.

An activation is an `Act`: an array (B, H, W, C) and the *name* of its grid; the exponent e of each grid belongs to the
model. Python scalars are never combined with arrays, since numpy 1.26, numpy 2 and torch promote them differently:
constants are one-element arrays from the namespace's `full`.

The operations are written once, over a namespace of primitives: `NumpyNamespace`, or `TorchNamespace` for CUDA and for
the tests that compare the two. The modules, from lower to higher:

    constants       limits of codes and sums, grids whose meaning is fixed
    schedule        which latents each coding step codes
    namespaces      the primitives in numpy and in torch; whether this machine's products are exact
    elementary      exp, the sigmoid and 1/sqrt, and their tables
    quantisation    weights to integers, and the proof that their sums stay exact
    biwkv           the RWKV recurrence in both directions
    layers          one class for each kind of layer: its tensors and how they become integers
    ops             the list of operations that every implementation has
    reference       the reference implementation of these operations
"""

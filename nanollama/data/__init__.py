"""GSSM data: kernels, sampler, exact inference, offline sets and loaders."""

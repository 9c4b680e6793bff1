"""Training on Ray: the worker group, its data, and the bundle that comes out.

Nothing is imported here: data tasks import ``pipelines.train.data`` alone, and start seconds sooner without PyTorch.
"""

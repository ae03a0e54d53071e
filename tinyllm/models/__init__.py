"""The models, one file each."""
from .gpt import GPT, GPTConfig

MODELS = {"gpt": (GPT, GPTConfig)}      # name in a checkpoint -> classes

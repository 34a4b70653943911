"""The devices that tests run on."""

import torch

#: A CUDA device that is a program: right, and slow.
EMULATED = torch.cuda.is_available() and torch.cuda.get_device_name() == "ptxemu"
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

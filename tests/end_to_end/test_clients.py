"""Real clients of a real server, several processes at once; the server can't import torch."""

import io
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import ATTRIBUTES, IMAGE_SIZE, LATENT_DIM, images_of, latents_of, random_images, tiny_directions
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image
from servers import END_TO_END, ServerProcess, environment_without_torch, run_python

from engine.client import Client
from engine.images import prepare


def start_worker(target: str, seed: int, rounds: int, folder: Path) -> "subprocess.Popen[str]":
    environment = environment_without_torch(folder)
    environment["PYTHONPATH"] = f"{END_TO_END.parent}:{environment['PYTHONPATH']}"
    # The worker checks against the tiny bundle's arithmetic, whose module needs onnx.
    environment["PYTHONPATH"] = environment["PYTHONPATH"].replace(f"{folder}:", "")
    command = [sys.executable, str(END_TO_END / "client_worker.py"), target, str(seed), str(rounds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

"""grpcio as its tutorial has it: a thread a call, each call a batch."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from model import PORT, Model

from protos import dfcvae_pb2 as pb
from protos import dfcvae_pb2_grpc


class Servicer(dfcvae_pb2_grpc.LatentEngineServicer):
    def __init__(self) -> None:
        self._model = Model()

    def Edit(self, request: pb.EditRequest, context: grpc.ServicerContext) -> pb.EditResponse:
        raw = request.images.raw
        shape = (raw.count, raw.height, raw.width, 3)
        edited = self._model.edit(np.frombuffer(raw.data, np.uint8).reshape(shape))
        count, height, width, _ = edited.shape
        answer = pb.RawImages(count=count, height=height, width=width, data=edited.tobytes())
        return pb.EditResponse(images=pb.ImageBatch(raw=answer))


server = grpc.server(ThreadPoolExecutor(32))
dfcvae_pb2_grpc.add_LatentEngineServicer_to_server(Servicer(), server)
server.add_insecure_port(f"127.0.0.1:{PORT}")
server.start()
server.wait_for_termination()

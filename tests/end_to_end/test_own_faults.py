"""What is the server's fault is told as that, and is in its log."""

from pathlib import Path

import grpc
import pytest
from batches import file_batch
from gates import connected
from servers import ServerProcess

from protos import dfcvae_pb2 as pb

# The real server, in which what brings decoded pictures to the frame fails.
FAULTY = """
import runpy
import engine.images.files

def prepare(image, frame):
    raise {error}

engine.images.files.prepare = prepare
runpy.run_module("engine", run_name="__main__", alter_sys=True)
"""

PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("KeyError('secret')", grpc.StatusCode.INTERNAL, "the server failed on this request; its log has the reason"),
        ("MemoryError()", grpc.StatusCode.RESOURCE_EXHAUSTED, "the server has too little memory for this request; "),
    ],
)
def test_faults_beside_the_file_are_not_the_clients(
    tiny_bundle: Path, tmp_path: Path, error: str, code: grpc.StatusCode, message: str
) -> None:
    images = file_batch([PICTURE])
    command = ["-c", FAULTY.format(error=error), "--bundle", str(tiny_bundle)]
    with ServerProcess(command, tmp_path) as server, connected(server.target) as stub:
        with pytest.raises(grpc.RpcError) as refusal:
            stub.Encode(pb.EncodeRequest(images=images))
        (answer,) = stub.EditStream(iter([pb.EditStreamRequest(images=images)]))
        server.wait_for_log(error.removesuffix("()").partition("(")[0], count=2)
    assert refusal.value.code() is code
    assert refusal.value.details().startswith(message)
    assert (answer.error.code, answer.error.message) == (code.value[0], refusal.value.details())

"""New bundles under a running server: SIGHUP, a watched folder, several models, and calls that go on meanwhile."""

import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import write_tiny_bundle
from gates import connected, gated_server, until
from servers import ServerProcess, server_of
from tiny_model import latents_of, random_images

from engine.bundle import MANIFEST
from engine.client import Client
from protos import dfcvae_pb2 as pb


def replace_bundle(folder: Path, crop: int) -> None:
    """Puts another bundle in the place of one, as `export` does."""
    write_tiny_bundle(folder.with_name(f"{folder.name}.new"), crop)
    folder.rename(folder.with_name(f"{folder.name}.old.{crop}"))
    folder.with_name(f"{folder.name}.new").rename(folder)


def model_of(server: ServerProcess, name: str = "") -> pb.GetModelResponse:
    with connected(server.target) as stub:
        answer: pb.GetModelResponse = stub.GetModel(pb.GetModelRequest(model=name), timeout=30)
    return answer


def crop_of(server: ServerProcess, name: str = "") -> int:
    return model_of(server, name).preprocessing.crop


def test_hanging_up_swaps_bundles_and_loses_nothing(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", crop=12)
    with server_of(bundle, tmp_path, "--metrics-port", "0") as server:
        end, counts = threading.Event(), []

        def work(seed: int) -> None:
            images = random_images(3, seed)
            count = 0
            with Client(server.target) as mine:
                while not end.is_set():
                    np.testing.assert_array_equal(mine.encode(images).mu, latents_of(images))
                    count += 1
            counts.append(count)

        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for worker in workers:
            worker.start()
        assert crop_of(server) == 12
        try:
            for crop in (13, 14, 15):
                replace_bundle(bundle, crop)
                server.hang_up()
                server.wait_for_log("takes over from", crop - 12)
                assert crop_of(server) == crop
        finally:
            end.set()
            for worker in workers:
                worker.join()
        assert len(counts) == 3, "a worker failed"
        assert min(counts) > 0
        assert server.metric("dfcvae_reloads_total", model="default", outcome="taken") == 3
        assert server.metric("dfcvae_requests_total", method="Encode", code="OK") == sum(counts)


def test_a_bad_bundle_is_refused_and_the_old_one_goes_on(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", crop=12)
    with server_of(bundle, tmp_path, "--metrics-port", "0") as server, Client(server.target) as client:
        (bundle / MANIFEST).write_text("{}")
        server.hang_up()
        server.wait_for_log("is refused, the old one stays")
        images = random_images(2, seed=1)
        np.testing.assert_array_equal(client.encode(images).mu, latents_of(images))
        assert server.metric("dfcvae_reloads_total", model="default", outcome="refused") == 1
        replace_bundle(bundle, 13)
        server.hang_up()
        server.wait_for_log("takes over from")
        assert crop_of(server) == 13


def test_a_watched_folder_is_followed_without_a_signal(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", crop=12)
    with server_of(bundle, tmp_path, "--reload-every-s", "0.05") as server:
        replace_bundle(bundle, 13)
        server.wait_for_log("takes over from")
        assert crop_of(server) == 13
        server.terminate()
        assert server.wait() == 0


def test_models_are_served_by_name_and_reloaded_one_by_one(tmp_path: Path) -> None:
    first = write_tiny_bundle(tmp_path / "first", crop=12)
    second = write_tiny_bundle(tmp_path / "second", crop=20)
    with server_of(f"first={first}", tmp_path, "--bundle", f"second={second}") as server:
        assert list(model_of(server).models) == ["first", "second"]
        assert (crop_of(server), crop_of(server, "first"), crop_of(server, "second")) == (12, 12, 20)
        replace_bundle(second, 21)
        server.hang_up()
        log = server.wait_for_log("takes over from")
        assert "model second: bundle" in log
        assert "model first: bundle" not in log
        assert (crop_of(server, "first"), crop_of(server, "second")) == (12, 21)
        with pytest.raises(grpc.RpcError) as refusal:
            model_of(server, "third")
        assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
        assert "'third'" in refusal.value.details()


def test_a_bundle_that_is_copied_in_the_wrong_order_is_taken_when_it_is_complete(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", crop=12)
    with server_of(bundle, tmp_path, "--reload-every-s", "0.05") as server:
        later = write_tiny_bundle(tmp_path / "later", crop=13)
        decoder = bundle / "decoder.onnx"
        whole = (later / decoder.name).read_bytes()
        decoder.write_bytes(whole[:10])
        for name in ("directions.safetensors", MANIFEST):
            (bundle / name).write_bytes((later / name).read_bytes())
        server.wait_for_log("is refused, the old one stays")
        assert crop_of(server) == 12
        decoder.write_bytes(whole)
        until(lambda: crop_of(server) == 13)
        assert server.log.count("is refused") == 1


def test_a_new_bundle_whose_backend_is_stuck_does_not_keep_the_server_alive(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", crop=12)
    with gated_server(bundle, tmp_path, "--grace-s", "0.5") as gate:
        gate.close()
        replace_bundle(bundle, 13)
        gate.server.hang_up()
        until(lambda: len(gate.batches()) == 1)
        gate.server.terminate()
        assert gate.server.wait() == 1
        assert "the backend is stuck in a batch of default; the process ends without it" in gate.server.log

"""Figures without a server."""

from engine.telemetry.metrics import Metrics


def test_answers_within_streams_are_counted_by_status() -> None:
    metrics = Metrics()
    figures = metrics.method("/dfcvae.v1.LatentEngine/EditStream")
    for code in ("OK", "NOT_FOUND", "OK"):
        figures.answered(code)

    def count(code: str) -> float | None:
        return metrics.registry.get_sample_value("dfcvae_stream_answers_total", {"method": "EditStream", "code": code})

    assert (count("OK"), count("NOT_FOUND"), count("INTERNAL")) == (2, 1, None)

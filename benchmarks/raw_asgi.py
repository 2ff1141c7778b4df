"""The peer of `serving.py`: the least code that batches the same model behind the same server, and checks nothing.

No token, no allow-list, no limits, no deadline, no validation, no ranking of many classes. What MMS costs above this is
what those cost.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvicorn

from mms_sdk.compute.inference.predictor import Predictor

JSON, BINARY = (b"content-type", b"application/json"), (b"content-type", b"application/octet-stream")


class RawBatcher:
    def __init__(self, folder: Path) -> None:
        self.predictor = Predictor(folder)
        self.queue: deque[tuple[Any, Any]] = deque()
        self.some = threading.Event()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        while self.some.wait():
            self.some.clear()
            while self.queue:
                batch = [self.queue.popleft() for _ in range(min(len(self.queue), self.predictor.buckets[-1]))]
                scores = self.predictor.scores(np.concatenate([rows for rows, _ in batch]))
                batch[0][1].get_loop().call_soon_threadsafe(self.hand_over, batch, scores)

    def hand_over(self, batch: list[tuple[Any, Any]], scores: Any) -> None:
        at = 0
        for rows, future in batch:
            future.set_result(scores[at : at + len(rows)])
            at += len(rows)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        shape = self.predictor.input_shape
        if scope["path"].endswith(":predict"):
            rows = np.asarray(orjson.loads(body)["instances"], np.uint8).reshape(-1, *shape)
            answer = orjson.dumps({"predictions": (await self.scores(rows)).tolist()})
            headers = [JSON]
        else:
            head = int(dict(scope["headers"])[b"inference-header-content-length"])
            told = orjson.loads(body[:head])["inputs"][0]["shape"]
            scores = await self.scores(np.frombuffer(body, np.uint8, offset=head).reshape(told))
            front = orjson.dumps({"outputs": [{"name": "scores", "shape": scores.shape, "datatype": "FP32"}]})
            answer = front + scores.tobytes()
            headers = [BINARY, (b"inference-header-content-length", b"%d" % len(front))]
        headers.append((b"content-length", b"%d" % len(answer)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def scores(self, rows: Any) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self.queue.append((rows, future))
        self.some.set()
        return future


if __name__ == "__main__":
    app = RawBatcher(Path(sys.argv[1]))
    config = uvicorn.Config(app, port=int(sys.argv[2]), log_level="warning", access_log=False, lifespan="off")
    uvicorn.Server(config).run()

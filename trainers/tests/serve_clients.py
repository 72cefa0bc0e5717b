"""The unmodified clients of openpi and OpenVLA against `serve`; prints what they got as JSON, for serve_clients.rs.

    python serve_clients.py PORT DECISIONS [TOKEN]
"""

import json as plain_json
import sys

import numpy as np
from openpi_client import msgpack_numpy, websocket_client_policy

PORT, DECISIONS = int(sys.argv[1]), int(sys.argv[2])
TOKEN = sys.argv[3] if len(sys.argv) > 3 else None
SIDE, PROPRIO = 32, 8
_dumps = plain_json.dumps  # json_numpy.patch() replaces it


def image(i, camera):
    y, x, c = np.mgrid[0:SIDE, 0:SIDE, 0:3]
    return ((i * 37 + y * 3 + x * 5 + c * 11 + camera * 101) % 256).astype(np.uint8)


def state(i):
    return np.array([0.25 * i + 0.5 * k for k in range(PROPRIO)])


def openpi():
    """examples/libero/main.py: the element, the call and the key."""
    client = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", PORT, api_key=TOKEN)
    metadata = client.get_server_metadata()
    chunks = []
    for i in range(DECISIONS):
        element = {
            "observation/image": image(i, 0),
            "observation/wrist_image": image(i, 1),
            "observation/state": state(i),
            "prompt": "put the bowl on the plate",
        }
        reply = client.infer(element)
        assert isinstance(reply["actions"], np.ndarray), reply
        assert reply["server_timing"]["infer_ms"] > 0
        chunks.append(reply["actions"].tolist())
        if i == 1:
            try:
                client.infer({**element, "observation/image": element["observation/image"][:16]})
                raise SystemExit("a wrong shape was accepted")
            except RuntimeError as error:
                refusal = str(error)
    again = client.infer(element)["actions"]
    return {"metadata": metadata, "chunks": chunks, "refusal": refusal, "dtype": str(again.dtype)}


def openvla():
    """The client of vla-scripts/deploy.py's header."""
    import json_numpy

    json_numpy.patch()
    import requests

    url = f"http://127.0.0.1:{PORT}/act"
    headers = {"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}

    def element(i):
        return {
            "image": image(i, 0),
            "wrist_image": image(i, 1),
            "state": state(i),
            "instruction": "put the bowl on the plate",
        }

    alone, double, session = [], [], []
    for i in range(DECISIONS):
        reply = requests.post(url, json=element(i), headers=headers)
        action = reply.json()
        assert isinstance(action, np.ndarray), (reply.status_code, action)
        alone.append(action.tolist())
        encoded = requests.post(url, json={"encoded": json_numpy.dumps(element(i))}, headers=headers)
        double.append(json_numpy.loads(encoded.json()).tolist())
        dealt = requests.post(url, json=element(i), headers={**headers, "X-Session-Id": "arm"})
        session.append(dealt.json().tolist())
    chunk = requests.post(url + "?reply=chunk", json=element(0), headers=headers).json()
    # OpenVLA-OFT takes its chunk as a list of actions.
    oft = [np.asarray(action).tolist() for action in chunk]
    refused = requests.post(url, json={"image": image(0, 0)}, headers=headers)
    return {"alone": alone, "double": double, "session": session, "oft": oft, "refused": refused.status_code}


result = {"openpi": openpi(), "openvla": openvla()}
del result["openpi"]["metadata"]["batching"]
assert msgpack_numpy.unpackb(msgpack_numpy.packb(result["openpi"]["metadata"]))["server"] == "simloop"
print(_dumps(result))

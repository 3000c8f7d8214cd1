#!/usr/bin/env python3
"""What kubectl is too slow for: many pods a second, and admission reviews over the wire. Python's own library only.

    api.py pods NAMESPACE RATE SECONDS    creates pods that no node takes, at that rate; JSON: created, failed, latencies
    api.py reviews URL COUNT FILE...      posts each file (a Pod) as AdmissionReview, in turn, COUNT times on one connection
"""

import base64
import http.client
import json
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid


def kubeconfig():
    """Server and TLS context of the current context, which must have a client certificate or a token."""
    text = subprocess.run(["kubectl", "config", "view", "--minify", "--flatten", "--raw", "-o", "json"],
                          check=True, capture_output=True).stdout
    config = json.loads(text)
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    if "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile() as both:
            both.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
            both.flush()
            context.load_cert_chain(both.name)
    headers = {"Authorization": "Bearer " + user["token"]} if "token" in user else {}
    return urllib.parse.urlsplit(cluster["server"]), context, headers


def quantiles(latencies):
    ordered = sorted(latencies)
    at = lambda share: round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 1) if ordered else None
    return {"p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1)}


def pod(name):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "e2e-many"}},
            "spec": {"nodeSelector": {"e2e": "nowhere"}, "terminationGracePeriodSeconds": 0, "serviceAccountName": "many",
                     "containers": [{"name": "app", "image": "localhost/e2e/none:1"}]}}


def pods(namespace, rate, seconds):
    server, context, headers = kubeconfig()
    lock, latencies, failures = threading.Lock(), [], []
    workers = 8
    begun = time.monotonic()

    def work(worker):
        connection = None
        for number in range(worker, int(rate * seconds), workers):
            time.sleep(max(0, begun + number / rate - time.monotonic()))
            body = json.dumps(pod(f"many-{uuid.uuid4().hex[:12]}"))
            started = time.monotonic()
            try:
                if connection is None:
                    connection = http.client.HTTPSConnection(server.hostname, server.port, context=context, timeout=15)
                connection.request("POST", f"/api/v1/namespaces/{namespace}/pods", body,
                                   headers | {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                injected = b'"name":"postern-proxy"' in text
                failed = None if answer.status == 201 and injected else f"{answer.status} {text[:300]!r}"
            except OSError as error:
                failed, connection = repr(error), None
            with lock:
                (failures.append(failed) if failed else latencies.append(time.monotonic() - started))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    print(json.dumps({"created": len(latencies), "failed": len(failures), "failures": failures[:3],
                      "per_second": round(len(latencies) / took, 1)} | quantiles(latencies)))


def reviews(url, count, files):
    url = urllib.parse.urlsplit(url)
    context = ssl._create_unverified_context()  # the figure is the injector's, the certificate the API server's business
    bodies = []
    for file in files:
        with open(file) as text:
            document = json.load(text)
        bodies.append(json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": str(uuid.uuid4()), "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"}, "operation": "CREATE",
            "namespace": document["metadata"].get("namespace", "shop"), "userInfo": {"username": "e2e"},
            "object": document, "dryRun": False}}))
    connection = http.client.HTTPSConnection(url.hostname, url.port or 443, context=context, timeout=10)
    connection.connect()
    latencies, failures = [], []
    for number in range(count):
        started = time.monotonic()
        connection.request("POST", url.path, bodies[number % len(bodies)], {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        latencies.append(time.monotonic() - started)
        if answer.status != 200 or b'"allowed":true' not in text:
            failures.append(f"{answer.status} {text[:300]!r}")
    print(json.dumps({"reviews": count, "failed": len(failures), "failures": failures[:3]} | quantiles(latencies)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["pods"]:
        pods(sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
    elif sys.argv[1:2] == ["reviews"]:
        reviews(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(__doc__)

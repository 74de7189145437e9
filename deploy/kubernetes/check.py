"""Checks the rendered overlays. See `check`, which runs it."""

import base64
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import kubernetes_validate
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HERE = Path(__file__).parent
# Pods know their ordinal by a label since 1.32; the newest is the newest of the validator.
VERSIONS = ["1.32.0", kubernetes_validate.latest_version()]
OVERLAYS = ["three-nodes", "two-zones"]
ISSUERS = ["cert-manager", "plain-secrets"]
# Objects of operators, whose schemas the validator does not have: what matters in them is checked here.
CUSTOM = {"Issuer", "Certificate", "ServiceMonitor"}
# Made by hand, as README.md says.
MADE_BY_HAND = {"quorate-cluster-secret": {"cluster.secret"}}
# quorated's limits.stop_timeout_ms, unless the configuration has it, and what closing the store may take beyond.
STOP_TIMEOUT_MS = 10_000
CLOSING_S = 10
ID_LABEL = "metadata.labels['apps.kubernetes.io/pod-index']"
ZONE_LABEL = "topology.kubernetes.io/zone"

PLANT = "--planted"
# Faults to plant: the file, what is in it, and what is put in its place.
STATEFUL_SET = "base/node/stateful-set.yaml"
SERVICES = "base/cluster/services.yaml"
POLICY = "base/cluster/network-policy.yaml"
CERTIFICATES = "components/cert-manager/certificates.yaml"
MONITOR = "components/prometheus-operator/service-monitor.yaml"
THREE = "overlays/three-nodes/node.toml"
TWO = "overlays/two-zones/node.toml"
PLANTED = [
    (STATEFUL_SET, "serviceName: quorate-nodes", "serviceName: quorate"),
    (STATEFUL_SET, "replicas: 3", "replicas: 4"),
    (STATEFUL_SET, "start: 1", "start: 0"),
    (STATEFUL_SET, "podManagementPolicy: Parallel", "podManagementPolicy: OrderedReady"),
    (STATEFUL_SET, "minReadySeconds", "minReadySecond"),
    (STATEFUL_SET, "path: /readyz\n              port: http", "path: /readyz\n              port: web"),
    (STATEFUL_SET, "path: /readyz", "path: /ready"),
    (STATEFUL_SET, "seconds: 5", "seconds: 45"),
    (STATEFUL_SET, "runAsNonRoot: true", "runAsNonRoot: false"),
    (STATEFUL_SET, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    (STATEFUL_SET, "enableServiceLinks: false", "enableServiceLinks: true"),
    (STATEFUL_SET, "mountPath: /var/lib/quorate", "mountPath: /data"),
    (STATEFUL_SET, "name: quorate-node-tls", "name: quorate-tls"),
    (STATEFUL_SET, "QUORATE_NODE_ID", "QUORATE_NODE_NAME"),
    (STATEFUL_SET, "pod-index']", "index']"),
    (STATEFUL_SET, "topologyKey: kubernetes.io/hostname", "topologyKey: kubernetes.io/os"),
    (SERVICES, "publishNotReadyAddresses: true", "publishNotReadyAddresses: false"),
    (SERVICES, "clusterIP: None", "type: ClusterIP"),
    (SERVICES, "targetPort: http", "targetPort: web"),
    (SERVICES, "component: nodes", "component: node"),
    (SERVICES, "  selector:\n    app.kubernetes.io/name: quorate", "  selector:\n    app.kubernetes.io/name: quorated"),
    ("base/cluster/disruption-budget.yaml", "maxUnavailable: 1", "maxUnavailable: 2"),
    ("base/cluster/disruption-budget.yaml", "name: quorate\n", "name: quorated\n"),
    (POLICY, 'quorate/client: "true"', 'quorate/clients: "true"'),
    (POLICY, "port: 7500", "port: 9090"),
    (POLICY, "- port: 7400\n          protocol: UDP", "- port: 7400\n          protocol: TCP"),
    (CERTIFICATES, "- quorate:node", "- quorate:nodes"),
    (CERTIFICATES, "- node.quorate", "- quorate-nodes"),
    (CERTIFICATES, "- client auth", "- code signing"),
    (CERTIFICATES, "- server auth", "- code signing"),
    (CERTIFICATES, "quorate:client/admin", "quorate:node"),
    (CERTIFICATES, "isCA: true", "isCA: false"),
    (CERTIFICATES, "    secretName: quorate-ca", "    secretName: quorate-other"),
    (CERTIFICATES, "renewBefore: 720h", "renewBefore: 2160h"),
    (CERTIFICATES, "rotationPolicy: Never", "rotationPolicy: Always"),
    (MONITOR, "port: http", "port: metrics"),
    (MONITOR, "path: /metrics", "path: /metric"),
    (MONITOR, "jobLabel: app.kubernetes.io/name", "jobLabel: app.kubernetes.io/component"),
    (MONITOR, "component: nodes", "component: clients"),
    ("components/plain-secrets/kustomization.yaml", "tls.key=files/node-key.pem", "tls.key=files/admin-key.pem"),
    ("base/cluster/client.toml", "quorate-nodes.quorate.svc:7400", "quorate-node.quorate.svc:7400"),
    ("base/cluster/client.toml", "keyspace", "keyspaces"),
    (THREE, "quorate-3.", "quorate-4."),
    (THREE, "quorate.svc:7400", "other.svc:7400"),
    (THREE, "quorate.svc:7400", "quorate.svc:7401"),
    (THREE, 'rack = "rack-2"', 'rack = "rack-1"'),
    (THREE, '"0.0.0.0:7400"', '"127.0.0.1:7400"'),
    (THREE, '"0.0.0.0:7500"', '"0.0.0.0:7501"'),
    (THREE, '"tls.key"', '"key.pem"'),
    (THREE, "[[cluster.keyspaces]]", "[[cluster.keyspace]]"),
    (TWO, 'rack = "zone-b"', 'rack = "zone-a"'),
    ("overlays/two-zones/zone-b/kustomization.yaml", "start: 201", "start: 101"),
    ("overlays/two-zones/zone-b/kustomization.yaml", "values: [zone-b]", "values: [zone-c]"),
    ("overlays/two-zones/kustomization.yaml", "type: OnDelete", "type: RollingUpdate"),
    ("overlays/two-zones/kustomization.yaml", "namespace: quorate", "namespace: other"),
]


class Problems(list):
    """What is wrong, as sentences."""

    def expect(self, holds, sentence):
        if not holds:
            self.append(sentence)
        return holds


def matches(selector, labels):
    return bool(selector) and selector.items() <= labels.items()


def name_of(thing):
    return thing["metadata"]["name"]


class Rendered:
    """The objects of an overlay."""

    def __init__(self, text):
        self.objects = [document for document in yaml.safe_load_all(text) if document]
        self.nodes = self.of_kind("StatefulSet")
        self.templates = {name_of(node): node["spec"]["template"] for node in self.nodes}

    def of_kind(self, kind):
        return [thing for thing in self.objects if thing["kind"] == kind]

    def named(self, kind, name):
        return next((thing for thing in self.of_kind(kind) if name_of(thing) == name), None)

    def keys_of(self, secret):
        """The keys of a secret that is rendered, issued or made by hand; none if nobody makes it."""
        if found := self.named("Secret", secret):
            return set(found["data"])
        if any(certificate["spec"]["secretName"] == secret for certificate in self.of_kind("Certificate")):
            return {"ca.crt", "tls.crt", "tls.key"}
        return MADE_BY_HAND.get(secret)

    def pods(self):
        """Name, ordinal and set of each node's pod."""
        for node in self.nodes:
            start = node["spec"].get("ordinals", {}).get("start", 0)
            for ordinal in range(start, start + node["spec"]["replicas"]):
                yield f"{name_of(node)}-{ordinal}", ordinal, node


def container_of(workload):
    return workload["spec"]["template"]["spec"]["containers"][0]


def ports_of(workload):
    return {port["name"]: port for port in container_of(workload).get("ports", [])}


def check_schemas(rendered, problems):
    for thing in rendered.objects:
        if thing["kind"] in CUSTOM:
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(thing, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                where = ".".join(str(part) for part in error.path)
                problems.append(f"{thing['kind']} {name_of(thing)}, Kubernetes {version}: {where}: {error.message}")


def check_pods(rendered, problems):
    """What the strictest pod security standard and a read-only root file system ask for, and that volumes are there."""
    for workload in rendered.nodes + rendered.of_kind("Deployment"):
        name, spec, container = name_of(workload), workload["spec"]["template"]["spec"], container_of(workload)
        labels = workload["spec"]["template"]["metadata"]["labels"]
        problems.expect(matches(workload["spec"]["selector"]["matchLabels"], labels), f"{name} does not select its pods")
        security, own = spec["securityContext"], container["securityContext"]
        problems.expect(security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0, f"{name} runs as root")
        problems.expect(security.get("seccompProfile") == {"type": "RuntimeDefault"}, f"{name}: seccomp")
        problems.expect(own.get("allowPrivilegeEscalation") is False, f"{name} may gain privileges")
        problems.expect(own.get("readOnlyRootFilesystem") is True, f"{name} can write its root file system")
        problems.expect(own.get("capabilities") == {"drop": ["ALL"]}, f"{name} keeps capabilities")
        problems.expect(spec.get("enableServiceLinks") is False, f"{name}: services override settings")
        problems.expect(spec.get("automountServiceAccountToken") is False, f"{name} has a token of Kubernetes'")
        volumes = {volume["name"] for volume in spec["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        problems.expect(volumes == mounted, f"{name}: volumes {volumes}, mounted {mounted}")


def check_nodes(rendered, problems):
    for node in rendered.nodes:
        name, spec, container, ports = name_of(node), node["spec"], container_of(node), ports_of(node)
        problems.expect(spec.get("podManagementPolicy") == "Parallel", f"{name}: founders wait for each other for ever")
        problems.expect(
            len(rendered.nodes) == 1 or spec.get("updateStrategy", {}).get("type") == "OnDelete",
            f"{name}: several sets restart a node each at the same time",
        )
        expected = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
        for probe, path in expected.items():
            get = container[probe]["httpGet"]
            problems.expect(get["path"] == path and get["port"] == "http" and "http" in ports, f"{name}: {probe} {get}")
        anti = spec["template"]["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        problems.expect(
            any(
                term["topologyKey"] == "kubernetes.io/hostname"
                and matches(term["labelSelector"]["matchLabels"], spec["template"]["metadata"]["labels"])
                for term in anti
            ),
            f"{name}: two nodes on one machine",
        )
        variables = {entry["name"]: entry for entry in container["env"]}
        path = variables.get("QUORATE_NODE_ID", {}).get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        problems.expect(path == ID_LABEL, f"{name}: a node's id is {path}, not its ordinal")


def check_services(rendered, problems):
    for service in rendered.of_kind("Service"):
        name, selector = name_of(service), service["spec"]["selector"]
        for node in rendered.nodes:
            problems.expect(matches(selector, rendered.templates[name_of(node)]["metadata"]["labels"]),
                            f"service {name} leaves out the pods of {name_of(node)}")
            for port in service["spec"]["ports"]:
                found = ports_of(node).get(port["targetPort"], {})
                fits = (found.get("containerPort"), found.get("protocol")) == (port["port"], port["protocol"])
                problems.expect(fits, f"service {name}: port {port['name']} is no port of {name_of(node)}")
    for node in rendered.nodes:
        service = rendered.named("Service", node["spec"]["serviceName"])
        problems.expect(service and service["spec"].get("clusterIP") == "None", f"{name_of(node)}: pods have no names")
        problems.expect(service and service["spec"].get("publishNotReadyAddresses") is True,
                        f"{name_of(node)}: founders do not find each other before they are ready")
    budgets = rendered.of_kind("PodDisruptionBudget")
    problems.expect(len(budgets) == 1 and budgets[0]["spec"]["maxUnavailable"] == 1, "not one node at a time is evicted")
    for node in rendered.nodes:
        labels = rendered.templates[name_of(node)]["metadata"]["labels"]
        problems.expect(any(matches(budget["spec"]["selector"]["matchLabels"], labels) for budget in budgets),
                        f"no disruption budget covers {name_of(node)}")


def check_policy(rendered, problems):
    policy = rendered.of_kind("NetworkPolicy")[0]["spec"]
    clients = [pods["spec"]["template"]["metadata"]["labels"] for pods in rendered.of_kind("Deployment")]

    def admits(rules, side, labels, port, protocol):
        return any(
            {"port": port, "protocol": protocol} in rule["ports"]
            and any(matches(peer.get("podSelector", {}).get("matchLabels", {}), labels) for peer in rule.get(side, []))
            for rule in rules
        )

    for node in rendered.nodes:
        name, labels, ports = name_of(node), rendered.templates[name_of(node)]["metadata"]["labels"], ports_of(node)
        quic, http = ports["quic"]["containerPort"], ports["http"]["containerPort"]
        problems.expect(matches(policy["podSelector"]["matchLabels"], labels), f"the network policy leaves out {name}")
        problems.expect(admits(policy["egress"], "to", labels, quic, "UDP"), f"{name} may not reach nodes")
        for others in [labels, *clients]:
            problems.expect(admits(policy["ingress"], "from", others, quic, "UDP"), f"{others} may not reach {name}")
        prometheus = {"app.kubernetes.io/name": "prometheus"}
        problems.expect(admits(policy["ingress"], "from", prometheus, http, "TCP"), f"Prometheus may not reach {name}")
        problems.expect(not admits(policy["ingress"], "from", clients[0], http, "TCP"), "clients may read metrics")
    problems.expect(set(policy["policyTypes"]) == {"Ingress", "Egress"}, "the network policy is for one direction")
    for monitor in rendered.of_kind("ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        found = [service for service in rendered.of_kind("Service") if matches(selector, service["metadata"]["labels"])]
        problems.expect(len(found) == 1, f"{len(found)} services are scraped")
        jobs = {service["metadata"]["labels"].get(monitor["spec"]["jobLabel"]) for service in found}
        # The name by which rules and dashboards find the nodes.
        problems.expect(jobs == {"quorate"}, f"scraped as {jobs}")
        for endpoint in monitor["spec"]["endpoints"]:
            names = {port["name"] for service in found for port in service["spec"]["ports"]}
            problems.expect(endpoint["port"] in names and endpoint["path"] == "/metrics", f"scraped: {endpoint}")


def check_founders(rendered, problems):
    config = tomllib.loads(rendered.named("ConfigMap", config_map_of(rendered.nodes[0]))["data"]["node.toml"])
    founders = {founder["id"]: founder for founder in config["cluster"]["founders"]}
    ordinals = [ordinal for _, ordinal, _ in rendered.pods()]
    problems.expect(sorted(ordinals) == sorted(founders), f"founders {sorted(founders)}, pods {sorted(ordinals)}")
    zones = {}
    for pod, ordinal, node in rendered.pods():
        namespace, service = node["metadata"]["namespace"], node["spec"]["serviceName"]
        address = f"{pod}.{service}.{namespace}.svc:{ports_of(node)['quic']['containerPort']}"
        founder = founders.get(ordinal, {})
        problems.expect(founder.get("address") == address, f"founder {ordinal} is at {address}, not {founder.get('address')}")
        if zone := zone_of(node):
            problems.expect(founder.get("rack") == zone, f"founder {ordinal} runs in {zone}, and its rack is {founder.get('rack')}")
            zones.setdefault(zone, []).append(ordinal)
    problems.expect(
        zones or len({founder.get("rack") for founder in founders.values()}) == len(founders),
        "nodes that are placed anywhere are not racks of their own",
    )
    problems.expect(len({len(pods) for pods in zones.values()}) <= 1, f"zones of different sizes: {zones}")
    for node in rendered.nodes:
        for port, key in [("quic", "listen"), ("http", "http")]:
            expected = f"0.0.0.0:{ports_of(node)[port]['containerPort']}"
            problems.expect(config["node"][key] == expected, f"node.{key} is {config['node'][key]}, not {expected}")
        spec = node["spec"]["template"]["spec"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container_of(node)["volumeMounts"]}
        claim = node["spec"]["volumeClaimTemplates"][0]["metadata"]["name"]
        problems.expect(Path(config["node"]["data"]).is_relative_to(mounts[claim]), f"data is not on {claim}")
        arguments = container_of(node)["args"]
        problems.expect(arguments[:3] == ["run", "--config", f"{mounts['config']}/node.toml"], f"runs {arguments}")
        stop_s = config.get("limits", {}).get("stop_timeout_ms", STOP_TIMEOUT_MS) / 1000
        needed = container_of(node)["lifecycle"]["preStop"]["sleep"]["seconds"] + stop_s + CLOSING_S
        problems.expect(spec["terminationGracePeriodSeconds"] >= needed, f"a stop may take {needed} s")
    client = tomllib.loads(client_toml(rendered))
    namespace = rendered.nodes[0]["metadata"]["namespace"]
    services = {f"{name_of(service)}.{namespace}.svc:7400" for service in rendered.of_kind("Service")}
    problems.expect(set(client["seeds"]) == services, f"clients begin at {client['seeds']}, and the services are {services}")


def zone_of(node):
    required = node["spec"]["template"]["spec"]["affinity"].get("nodeAffinity", {})
    terms = required.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    found = [test["values"] for term in terms for test in term["matchExpressions"] if test["key"] == ZONE_LABEL]
    return found[0][0] if len(terms) == 1 and len(found) == 1 and len(found[0]) == 1 else None


def sources_of(workload):
    volumes = workload["spec"]["template"]["spec"]["volumes"]
    return next(volume["projected"]["sources"] for volume in volumes if volume["name"] == "config")


def config_map_of(workload):
    return next(source["configMap"]["name"] for source in sources_of(workload) if "configMap" in source)


def client_toml(rendered):
    return rendered.named("ConfigMap", config_map_of(rendered.of_kind("Deployment")[0]))["data"]["client.toml"]


def hours(duration):
    return int(duration.removesuffix("h"))


def check_certificates(rendered, problems):
    """What cert-manager makes of them, as far as no program of ours sees it."""
    issuers = {name_of(issuer): issuer["spec"] for issuer in rendered.of_kind("Issuer")}
    for certificate in rendered.of_kind("Certificate"):
        name, spec = name_of(certificate), certificate["spec"]
        problems.expect(spec["issuerRef"]["kind"] == "Issuer" and spec["issuerRef"]["name"] in issuers, f"{name}: no issuer")
        if name == "quorate-ca":
            problems.expect(spec.get("isCA") is True, "the authority is none")
            problems.expect(spec["privateKey"]["rotationPolicy"] == "Never", "an authority with a new key is another one")
            made = {issuer["ca"]["secretName"] for issuer in issuers.values() if "ca" in issuer}
            problems.expect(made == {spec["secretName"]}, "nobody issues with the authority's key")
        else:
            problems.expect("ca" in issuers.get(spec["issuerRef"]["name"], {}), f"{name} is not the authority's")
            problems.expect(hours(spec["duration"]) >= 2 * hours(spec["renewBefore"]), f"{name} is renewed all the time")
    admin = rendered.named("Certificate", "quorate-admin")
    if admin:
        problems.expect(admin["spec"]["uris"] == ["quorate:client/admin"], f"an administrator is {admin['spec']['uris']}")
        problems.expect("dnsNames" not in admin["spec"], "a client's certificate is for no host")


def issue(certificate, ca):
    """The files of a certificate's secret, as cert-manager makes them."""
    uses = {"server auth": ExtendedKeyUsageOID.SERVER_AUTH, "client auth": ExtendedKeyUsageOID.CLIENT_AUTH,
            "code signing": ExtendedKeyUsageOID.CODE_SIGNING}
    key, spec = ec.generate_private_key(ec.SECP256R1()), certificate["spec"]
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, spec["commonName"])])
    ca_key, ca_certificate = ca or (key, None)
    issuer = ca_certificate.subject if ca_certificate else subject
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), now,
                                      now + datetime.timedelta(hours=hours(spec["duration"])))
    builder = builder.add_extension(x509.BasicConstraints(spec.get("isCA", False), None), critical=True)
    names = [x509.UniformResourceIdentifier(uri) for uri in spec.get("uris", [])]
    names += [x509.DNSName(name) for name in spec.get("dnsNames", [])]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    extended = [uses[use] for use in spec.get("usages", []) if use in uses]
    if extended:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    signed = builder.sign(ca_key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    text = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    root = (ca_certificate or signed).public_bytes(encoding)
    return {"ca.crt": root, "tls.crt": signed.public_bytes(encoding), "tls.key": text}, (key, signed)


def secrets_of(rendered):
    """The contents of all secrets, by name and key."""
    made = {"quorate-cluster-secret": {"cluster.secret": b"0123456789abcdef" * 4}}
    for secret in rendered.of_kind("Secret"):
        made[name_of(secret)] = {key: base64.b64decode(value) for key, value in secret["data"].items()}
    authority = rendered.named("Certificate", "quorate-ca")
    if authority:
        _, ca = issue(authority, None)
        for certificate in rendered.of_kind("Certificate"):
            if certificate is not authority:
                made[certificate["spec"]["secretName"]], _ = issue(certificate, ca)
    return made


def mount(rendered, workload, directory, problems):
    """Lays a projected volume out as a directory."""
    secrets = secrets_of(rendered)
    for source in sources_of(workload):
        if "configMap" in source:
            found = rendered.named("ConfigMap", source["configMap"]["name"])
            files = {name: text.encode() for name, text in found["data"].items()} if found else None
        else:
            files = secrets.get(source["secret"]["name"])
        if problems.expect(files, f"{name_of(workload)}: nobody makes {source}"):
            for name, text in files.items():
                (directory / name).write_bytes(text)


def check_programs(rendered, problems):
    """That the programs take the configurations, with secrets as they would be mounted."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QUORATE")}
    for pod, ordinal, node in rendered.pods():
        with tempfile.TemporaryDirectory() as scratch:
            mount(rendered, node, Path(scratch), problems)
            command = [os.environ["QUORATED"], "check-config", "--config", f"{scratch}/node.toml"]
            said = subprocess.run(command, env=clean | {"QUORATE_NODE_ID": str(ordinal)}, capture_output=True, text=True)
            problems.expect(said.returncode == 0, f"{pod}: {said.stderr.strip()}")
    with tempfile.TemporaryDirectory() as scratch:
        mount(rendered, rendered.of_kind("Deployment")[0], Path(scratch), problems)
        command = [os.environ["QUORATE"], "--config", f"{scratch}/client.toml", "--timeout", "200ms", "status"]
        said = subprocess.run(command, env=clean, capture_output=True, text=True)
        # 5: there is no cluster. 2 would be a configuration that cannot be used.
        problems.expect(said.returncode == 5, f"quorate ends with {said.returncode}: {said.stderr.strip()}")


def check_secrets(rendered, problems):
    """Whether all files that the configuration names are there, in secrets that somebody makes."""
    for workload, names in [(node, ["node.toml"]) for node in rendered.nodes] + [
            (deployment, ["client.toml"]) for deployment in rendered.of_kind("Deployment")]:
        found = set(names)
        for source in sources_of(workload):
            if "secret" in source:
                keys = rendered.keys_of(source["secret"]["name"])
                problems.expect(keys, f"{name_of(workload)}: nobody makes the secret {source['secret']['name']}")
                found |= keys or set()
        text = rendered.named("ConfigMap", config_map_of(workload))["data"][names[0]]
        config = tomllib.loads(text)
        config = config.get("node", {}) | config | {"cluster.secret": config.get("cluster", {}).get("secret", "ca.crt")}
        wanted = {config[key] for key in ["ca", "certificate", "key", "cluster.secret"]}
        problems.expect(wanted <= found, f"{name_of(workload)} has no {sorted(wanted - found)}")


def render(tree, overlay, issuer):
    """Renders an overlay with one or the other way to certificates."""
    path = tree / "overlays" / overlay / "kustomization.yaml"
    text = path.read_text()
    path.write_text(text.replace("  - ../../components/cert-manager", f"  - ../../components/{issuer}"))
    kustomize = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    said = subprocess.run([*kustomize, str(path.parent)], capture_output=True, text=True)
    path.write_text(text)
    return said


def make_files(tree, with_programs):
    """What `quorate cert` makes for plain secrets; without it, files of no use that can be rendered all the same."""
    files = tree / "components/plain-secrets/files"
    names = ["ca.pem", "node.pem", "node-key.pem", "admin.pem", "admin-key.pem", "cluster.secret"]
    if with_programs:
        for command in [["init"], ["node", "node"], ["client", "admin", "--role", "admin"]]:
            subprocess.run([os.environ["QUORATE"], "cert", *command, "--dir", files], check=True, capture_output=True)
        (files / "cluster.secret").write_text(os.urandom(32).hex())
    for name in names:
        if not (files / name).exists():
            (files / name).write_text("not a real one\n")


CHECKS = [check_schemas, check_pods, check_nodes, check_services, check_policy, check_founders, check_secrets,
          check_certificates]


def check_tree(tree, checks, stop_early=False):
    problems = Problems()
    for overlay in OVERLAYS:
        for issuer in ISSUERS:
            said = render(tree, overlay, issuer)
            found = Problems()
            if said.returncode != 0:
                found.append(f"cannot be rendered: {said.stderr.strip()}")
            else:
                rendered = Rendered(said.stdout)
                for check in checks:
                    check(rendered, found)
                    if found and stop_early:
                        break
            problems.extend(f"{overlay} with {issuer}: {problem}" for problem in found)
            if problems and stop_early:
                return problems
    return problems


def copied(with_programs):
    scratch = tempfile.TemporaryDirectory()
    tree = Path(scratch.name) / "kubernetes"
    shutil.copytree(HERE, tree, ignore=shutil.ignore_patterns("*.pem", "*.secret"))
    make_files(tree, with_programs)
    return scratch, tree


def main():
    with_programs = all(os.access(os.environ[name], os.X_OK) for name in ["QUORATED", "QUORATE"])
    checks = CHECKS + ([check_programs] if with_programs else [])
    if not with_programs:
        print(f"SKIPPED: what the programs say: no {os.environ['QUORATED']} or no {os.environ['QUORATE']}", file=sys.stderr)
        if PLANT in sys.argv[1:]:
            # Some faults are the programs' to find.
            return 2
    scratch, tree = copied(with_programs)
    with scratch:
        problems = check_tree(tree, checks)
        for problem in problems:
            print(f"FAILED: {problem}", file=sys.stderr)
        if problems:
            return 1
        print(f"good: {len(OVERLAYS)} overlays, {len(ISSUERS)} ways to certificates, Kubernetes {' and '.join(VERSIONS)}")
        if PLANT not in sys.argv[1:]:
            return 0
        missed = 0
        for file, old, new in PLANTED:
            path = tree / file
            text = path.read_text()
            assert old in text, f"{file} has no {old!r}"
            path.write_text(text.replace(old, new))
            problems = check_tree(tree, checks, stop_early=True)
            path.write_text(text)
            shown = f"{file}: {old.strip().splitlines()[-1].strip()} -> {new.strip().splitlines()[-1].strip()}"
            print(f"found: {shown}: {problems[0]}" if problems else f"NOT FOUND: {shown}")
            missed += not problems
        print(f"{len(PLANTED)} planted faults, {missed} not found")
        return 1 if missed else 0


sys.exit(main())

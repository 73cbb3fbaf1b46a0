"""Throw-away virtual machines: `scripts/vm`, and the tests that need another kernel than ours.

- `__main__`: the command; `machine`: one guest, from its start to its end;
- `kernel`, `root`: what is booted, made of Debian's packages, and `initramfs`, what finds it;
- `stock`: a Debian that boots by itself, as people have it; `booted`: a guest of that, and ssh;
- `box`: `vagrant/build-box`, and `libvirt`: libvirtd for one test; `wheels`: what pip needs there;
- `outlet`: what the command writes, on its way out; `network`: two guests that see each other;
- `cargo`: the checkout and the command, as the guest gets them; `cache`: what is made once;
- `writelog`, `cut_steps`, `cut_checks`: power cuts, what is going on then, and what must be so;
- ``guest/init``, ``guest/start``: the two scripts that run in it before the command;
- ``guest/nfs``: tests of the kernel's NFS, which run in guests alone.
"""

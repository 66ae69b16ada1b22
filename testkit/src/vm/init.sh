#!/bin/busybox sh
# The first process of the machine: loads what is needed, runs the program, tells its status, ends the machine.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /sys/fs/cgroup
mount -t devpts pts /dev/pts; mount -t tmpfs tmp /dev/shm; mount -t tmpfs run /run
mount -t cgroup2 cg /sys/fs/cgroup 2>/dev/null; mkdir -p /run/netns; ln -sf /proc/self/fd /dev/fd
modprobe -a virtio_pci virtio_console
i=0; while [ ! -e /dev/vport0p3 ] && [ $i -lt 100 ]; do usleep 20000; i=$((i+1)); done
busybox ip link set lo up
. /run.env
for m in $VM_MODULES; do modprobe "$m" || echo "vm: no module $m" >/dev/vport0p2; done
[ -c /dev/vport0p3 ] && { cd /root; /bin/sh /run.sh </dev/null >/dev/vport0p1 2>/dev/vport0p2; echo $? >/dev/vport0p3; }
echo o >/proc/sysrq-trigger; sleep 5; poweroff -f

# The guest's first process, run by busybox: its shell has mount, mkdir and the like built in, and starting a process
# costs 50 to 100 ms here. Nothing runs but what storage needs: a boot takes seconds, not minutes.
# A step that fails ends the boot, and with it the guest: what is on the console then says why.
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 TERM=linux
export VOLATTACHD_IN_GUEST=1 PYTHONDONTWRITEBYTECODE=1
trap 'echo "boot.sh: line $LINENO, status $?"; poweroff -f' EXIT

mount -t sysfs sysfs /sys
[ -c /dev/null ] || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /run/lock

. /host/ctl/settings
echo "$NAME" >/proc/sys/kernel/hostname
while read -r mode name directory; do
    mkdir -p "/host/$name"
    mount -t hostfs -o "$mode,$directory" none "/host/$name"
done </host/ctl/shares

if [ "$INIT" = systemd ]; then
    echo "InitiatorName=iqn.1993-08.org.debian:01:$NAME" >/etc/iscsi/initiatorname.iscsi
    mkdir -p /run/systemd/system
    # What no test here needs and takes its time; Debian's tgt would take port 3260.
    for unit in apt-daily.timer apt-daily-upgrade.timer blk-availability.service dpkg-db-backup.timer e2scrub_all.timer \
        e2scrub_reap.service fstrim.timer getty@tty1.service lvm2-monitor.service modprobe@drm.service \
        modprobe@efi_pstore.service modprobe@fuse.service multipathd.service multipathd.socket ssh.service \
        systemd-binfmt.service systemd-logind.service systemd-update-utmp.service tgt.service; do
        ln -s /dev/null "/run/systemd/system/$unit"
    done
    cp /host/ctl/guest.target /host/ctl/guest-agent.service /run/systemd/system
    trap - EXIT
    exec /lib/systemd/systemd --unit=guest.target
fi

/sbin/modprobe -a ipv6 target_core_mod target_core_iblock target_core_file iscsi_target_mod iscsi_tcp dm-mod loop
mount -t configfs configfs /sys/kernel/config

ip link set lo up
if [ -n "$ADDRESSES" ]; then
    # The link has two ends and both addresses are ours: nothing to detect, and no second to wait for it.
    echo 0 >/proc/sys/net/ipv6/conf/vec0/accept_dad
    for address in $ADDRESSES; do ip addr add "$address" dev vec0; done
    ip link set vec0 up
fi

/lib/systemd/systemd-udevd --daemon
for disk in /sys/block/ubd*/uevent; do echo add >"$disk"; done
echo "InitiatorName=iqn.1993-08.org.debian:01:$NAME" >/etc/iscsi/initiatorname.iscsi
iscsid

cd /root
python3 -E -S /host/ctl/agent.py
sync

# Runs the lines that come over the second serial port, as guests do (guest/init.sh): "NUMBER SECONDS COMMAND".
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
# Drivers of cards: nothing else loads them.
modprobe -a virtio_net vmxnet3
echo "#up $(cat /proc/sys/kernel/random/boot_id)"
while read -r number seconds line; do
    echo "#begin $number"
    timeout -s KILL "$seconds" bash -c "$line" </dev/null 2>&1
    printf '\n#end %s %s\n' "$number" "$?"
done

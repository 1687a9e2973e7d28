# SIP over UDP: sipp's caller and callee
# packages: sip-tester
# admit: udp/5060
server() { cd "$D" && exec sipp -sn uas -i "$S" -p 5060 -nostdin -trace_err; }
client() { cd "$D" && sipp -sn uac "$SU:5060" -i "$C" -p 5061 -m 3 -r 10 -d 100 -nostdin -timeout 15 >/dev/null; }

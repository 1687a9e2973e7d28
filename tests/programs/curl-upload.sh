# HTTP/1.1 upload: curl to socat
# packages: curl socat
# admit: tcp/8080
server() { exec socat "TCP$F-LISTEN:8080,fork,reuseaddr" SYSTEM:"$P/curl-upload.answer"; }
client() { head -c 8000 /dev/zero | curl -sS -g -m 10 --data-binary @- "http://$SU:8080/" | grep -q "got 8000"; }

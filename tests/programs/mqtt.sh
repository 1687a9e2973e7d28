# MQTT: mosquitto, one subscriber, messages
# packages: mosquitto mosquitto-clients
# admit: tcp/1883
server() { printf 'listener 1883 %s\nallow_anonymous true\n' "$S" >"$D/conf"; exec mosquitto -c "$D/conf"; }
client() { mosquitto_pub -h "$S" -t a -m works -r -q 1 && mosquitto_sub -h "$S" -t a -C 1 -W 5 | grep -q works; }
long() { while echo tick; do sleep 0.1; done | mosquitto_pub -h "$S" -t b -l -q 1 & exec mosquitto_sub -h "$S" -t b -q 1; }

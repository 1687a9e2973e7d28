# Redis
# packages: redis-server
# admit: tcp/6379
server() { exec redis-server --bind "$S" --protected-mode no --save '' --dir "$D"; }
client() { redis-cli -h "$S" set key value | grep -q OK && redis-cli -h "$S" get key | grep -q value; }
long() { exec redis-cli -h "$S" -r -1 -i 0.1 ping; }

// A room with Socket.IO and its adapter for Redis.
"use strict";

const { createServer } = require("http");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");
const { Server } = require("socket.io");

const order = JSON.parse(process.env.BENCHMARK_SOCKETS);
// Before a look at its memory: how much garbage there is would be a matter of chance.
process.on("SIGUSR2", () => global.gc());

async function main() {
  const publisher = createClient({ url: order.redis });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);

  const http = createServer();
  // The clients here answer no pings: the first would come after ten minutes.
  const io = new Server(http, {
    adapter: createAdapter(publisher, subscriber, { key: order.prefix }),
    pingInterval: 600000,
  });
  io.on("connection", (socket) => {
    const count = Number(socket.handshake.query.groups);
    for (let number = 0; number < count; number++) socket.join(number ? `room.${number}` : "room");
  });
  http.listen({ host: order.host, port: order.port, backlog: 4096 });
}

main();

// A room with `ws`: what is published to a group of Redis goes to all of its clients, unchanged.
"use strict";

const { createClient } = require("redis");
const { WebSocketServer } = require("ws");

const order = JSON.parse(process.env.BENCHMARK_SOCKETS);
// Before a look at its memory: how much garbage there is would be a matter of chance.
process.on("SIGUSR2", () => global.gc());
const members = new Map();

async function main() {
  const redis = createClient({ url: order.redis });
  await redis.connect();

  const server = new WebSocketServer({ host: order.host, port: order.port, backlog: 4096 });

  function join(group, client) {
    let clients = members.get(group);
    if (clients === undefined) {
      clients = new Set();
      members.set(group, clients);
      redis.subscribe(group, (text) => {
        for (const each of clients) each.send(text);
      });
    }
    clients.add(client);
  }

  function leave(group, client) {
    const clients = members.get(group);
    clients.delete(client);
    if (clients.size === 0) {
      members.delete(group);
      redis.unsubscribe(group);
    }
  }

  server.on("connection", (client, request) => {
    const count = Number(request.url.split("/")[2]);
    const groups = [];
    for (let number = 0; number < count; number++) {
      groups.push(number ? `${order.prefix}room.${number}` : `${order.prefix}room`);
    }
    for (const group of groups) join(group, client);
    client.on("error", () => {});
    client.on("close", () => {
      for (const group of groups) leave(group, client);
    });
  });
}

main();

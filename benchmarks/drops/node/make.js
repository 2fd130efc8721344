// What server and publisher share.
const { Server } = require("socket.io");
const { createClient } = require("redis");
const { createAdapter } = require("@socket.io/redis-streams-adapter");

exports.make = async (order, server) => {
  const client = createClient({ url: order.url });
  // Redis is stopped and killed here; its client connects again by itself.
  client.on("error", () => {});
  await client.connect();
  const io = new Server(server, {
    adapter: createAdapter(client, { streamName: order.prefix }),
    connectionStateRecovery: { maxDisconnectionDuration: 60000, skipMiddlewares: true },
    transports: ["websocket"],
    serveClient: false,
  });
  return io;
};

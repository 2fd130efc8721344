// A Socket.IO server with connection state recovery: BENCHMARK_DROPS has the port and the address of Redis.
const http = require("http");
const { make } = require("./make");

const order = JSON.parse(process.env.BENCHMARK_DROPS);

async function main() {
  const server = http.createServer((request, response) => {
    if (!request.url.startsWith("/socket.io/")) {
      response.setHeader("Content-Type", "application/json");
      response.end(JSON.stringify({ pid: process.pid }));
    }
  });
  const io = await make(order, server);
  io.on("connection", (socket) => {
    if (!socket.recovered) {
      socket.join(socket.handshake.query.group.split(","));
    }
    socket.emit("here", { recovered: socket.recovered });
  });
  server.listen({ port: order.port, host: "127.0.0.1", backlog: 4096 });
}

main();

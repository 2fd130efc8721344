// The publisher of publisher.py for Socket.IO: a server without clients. emit() tells no fate: all count as accepted.
const readline = require("readline");
const { make } = require("./make");

const order = JSON.parse(process.argv[2]);
const text = order.text;
const now = () => Number(process.hrtime.bigint()) / 1e9;
const tell = (news) => process.stdout.write(JSON.stringify(news) + "\n");

async function main() {
  const io = await make(order.config);
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  await lines.next();
  const began = now();
  const rooms = order.rooms.map((name, index) => ({
    name, times: [], at: began + index / order.rooms.length / order.rate,
  }));
  const timer = setInterval(() => {
    for (const room of rooms) {
      while (room.at + room.times.length / order.rate <= now()) {
        const n = room.times.length;
        room.times.push(now());
        io.to(room.name).emit("message", { type: "chat.message", room: room.name, n, text });
      }
    }
  }, 5);
  tell({ began });
  await lines.next();
  clearInterval(timer);
  tell(Object.fromEntries(rooms.map((room) => [
    room.name, { began: room.times, fates: "a".repeat(room.times.length) },
  ])));
  setTimeout(() => process.exit(0), 1000);
}

main();

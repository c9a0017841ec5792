// A lean server to compare the filtered tier with: uWebSockets on one loop.
//
//   uws [merged] PORT UPSTREAM_PORT
//
// It takes `*` from a server at UPSTREAM_PORT and gives each client the events of its `TYPE.SYMBOL`
// channels. It looks each event up once in a hash table. A client gets one message for each frame
// with events for it, or with `merged` one for all frames of a read, and one write for each read.
// It trusts its upstream, keeps no counts and ends nobody, so it shows what the bare work costs.

#include "App.h"

#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

struct Client;
struct Session {
    std::unique_ptr<Client> client;
};
using Socket = uWS::WebSocket<false, true, Session>;

struct Client {
    Socket *socket = nullptr;
    // Messages of the current read, one after the other, and where each ends.
    std::string text;
    std::vector<size_t> ends;
    // The frame that the open message belongs to.
    uint64_t frame = 0;
    bool dirty = false;
    std::unordered_set<std::string> channels;
};

struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view key) const { return std::hash<std::string_view>{}(key); }
};

// By "T.AAPL", and by "T.*".
std::unordered_map<std::string, std::vector<Client *>, Hash, std::equal_to<>> holders;
std::unordered_map<std::string, std::vector<Client *>, Hash, std::equal_to<>> kinds;
std::vector<Client *> everything;
std::vector<Client *> dirty;
uint64_t frames = 0;
bool merged = false;

void remove(std::vector<Client *> &list, Client *client) { std::erase(list, client); }

std::vector<Client *> &list_of(const std::string &channel) {
    if (channel == "*") return everything;
    return channel.ends_with(".*") ? kinds[channel] : holders[channel];
}

void close_message(Client *client) {
    if (client->ends.empty() ? client->text.empty() : client->ends.back() == client->text.size()) return;
    client->text += ']';
    client->ends.push_back(client->text.size());
}

void give(Client *client, std::string_view event) {
    if (!client->dirty) {
        client->dirty = true;
        dirty.push_back(client);
        client->frame = frames;
        client->text += '[';
    } else if (client->frame != frames && !merged) {
        close_message(client);
        client->frame = frames;
        client->text += '[';
    } else {
        client->text += ',';
    }
    client->text += event;
}

// An event is a flat object that begins with its type and its symbol.
void route(std::string_view frame) {
    frames++;
    if (!everything.empty()) {
        for (Client *client : everything) {
            if (!client->dirty) {
                client->dirty = true;
                dirty.push_back(client);
            }
            client->text += frame;
            client->ends.push_back(client->text.size());
        }
        if (holders.empty() && kinds.empty()) return;
    }
    char key[64];
    const char *at = frame.data(), *end = at + frame.size();
    while ((at = static_cast<const char *>(memchr(at, '{', end - at)))) {
        const char *close = static_cast<const char *>(memchr(at, '}', end - at));
        if (!close) return;
        std::string_view event(at, close + 1 - at);
        at = close + 1;
        // {"ev":"T","sym":"AAPL",
        if (event.size() < 20 || memcmp(event.data(), "{\"ev\":\"", 7)) continue;
        size_t kind_end = event.find('"', 7);
        if (kind_end == std::string_view::npos || kind_end > 20) continue;
        if (event.compare(kind_end, 9, "\",\"sym\":\"")) continue;
        size_t sym = kind_end + 9, sym_end = event.find('"', sym);
        if (sym_end == std::string_view::npos || sym_end - sym > 32) continue;
        size_t kind = kind_end - 7;
        memcpy(key, event.data() + 7, kind);
        key[kind] = '.';
        memcpy(key + kind + 1, event.data() + sym, sym_end - sym);
        if (auto found = holders.find(std::string_view(key, kind + 1 + sym_end - sym)); found != holders.end())
            for (Client *client : found->second) give(client, event);
        if (!kinds.empty()) {
            key[kind + 1] = '*';
            if (auto found = kinds.find(std::string_view(key, kind + 2)); found != kinds.end())
                for (Client *client : found->second) give(client, event);
        }
    }
}

void flush() {
    for (Client *client : dirty) {
        close_message(client);
        client->socket->cork([client] {
            size_t from = 0;
            for (size_t end : client->ends) {
                client->socket->send(std::string_view(client->text).substr(from, end - from), uWS::OpCode::TEXT);
                from = end;
            }
        });
        client->text.clear();
        client->ends.clear();
        client->dirty = false;
    }
    dirty.clear();
}

// The upstream.

us_socket_t *upstream = nullptr;
std::string unread;
bool upgraded = false;

void write_all(std::string_view bytes) {
    us_socket_write(0, upstream, bytes.data(), static_cast<int>(bytes.size()), 0);
}

void command(std::string_view text) {
    std::string frame{static_cast<char>(0x81), static_cast<char>(0x80 | text.size())};
    frame.append(4, '\0');
    frame += text;
    write_all(frame);
}

// Returns how many bytes were whole frames.
size_t read_frames(const char *bytes, size_t length) {
    size_t at = 0;
    while (length - at >= 2) {
        auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[at + i]); };
        size_t payload = byte(1) & 0x7f, head = 2;
        if (payload == 126) {
            if (length - at < 4) break;
            payload = byte(2) << 8 | byte(3);
            head = 4;
        } else if (payload == 127) {
            if (length - at < 10) break;
            payload = 0;
            for (size_t i = 2; i < 10; i++) payload = payload << 8 | byte(i);
            head = 10;
        }
        if (length - at < head + payload) break;
        std::string_view text(bytes + at + head, payload);
        if ((byte(0) & 0x0f) == 9) {
            std::string pong{static_cast<char>(0x8a), static_cast<char>(0x80 | payload)};
            pong.append(4, '\0');
            pong += text;
            write_all(pong);
        } else if (text.starts_with("[{\"ev\":\"status\"")) {
            if (text.find("\"connected\"") != text.npos)
                command(R"({"action":"auth","params":"bench-key"})");
            else if (text.find("\"auth_success\"") != text.npos)
                command(R"({"action":"subscribe","params":"*"})");
        } else {
            route(text);
        }
        at += head + payload;
    }
    return at;
}

us_socket_t *on_data(us_socket_t *socket, char *bytes, int length) {
    std::string_view read(bytes, length);
    if (!unread.empty() || !upgraded) {
        unread += read;
        if (!upgraded) {
            size_t end = unread.find("\r\n\r\n");
            if (end == unread.npos) return socket;
            unread.erase(0, end + 4);
            upgraded = true;
        }
        unread.erase(0, read_frames(unread.data(), unread.size()));
    } else {
        unread = read.substr(read_frames(bytes, length));
    }
    flush();
    return socket;
}

void connect(int port) {
    auto *loop = reinterpret_cast<us_loop_t *>(uWS::Loop::get());
    us_socket_context_t *context = us_create_socket_context(0, loop, 0, {});
    us_socket_context_on_open(0, context, [](us_socket_t *socket, int, char *, int) {
        upstream = socket;
        write_all("GET /stocks HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                  "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
        return socket;
    });
    us_socket_context_on_data(0, context, on_data);
    us_socket_context_on_writable(0, context, [](us_socket_t *socket) { return socket; });
    us_socket_context_on_end(0, context, [](us_socket_t *socket) { return us_socket_close(0, socket, 0, nullptr); });
    us_socket_context_on_close(0, context, [](us_socket_t *, int, void *) -> us_socket_t * { exit(0); });
    us_socket_context_on_timeout(0, context, [](us_socket_t *socket) { return socket; });
    us_socket_context_on_long_timeout(0, context, [](us_socket_t *socket) { return socket; });
    us_socket_context_on_connect_error(0, context, [](us_socket_t *, int) -> us_socket_t * { exit(1); });
    if (!us_socket_context_connect(0, context, "127.0.0.1", port, nullptr, 0, 0)) exit(1);
}

std::string param(std::string_view message) {
    size_t at = message.find("\"params\":\"");
    if (at == message.npos) return {};
    at += 10;
    return std::string(message.substr(at, message.find('"', at) - at));
}

}

int main(int count, char **words) {
    merged = count > 3 && !strcmp(words[1], "merged");
    if (count < 3) return 2;
    int port = atoi(words[count - 2]), upstream_port = atoi(words[count - 1]);
    uWS::App app;
    app.ws<Session>("/*", {
        .compression = uWS::DISABLED,
        .maxPayloadLength = 1 << 20,
        .idleTimeout = 0,
        .maxBackpressure = 0,
        .sendPingsAutomatically = false,
        .open = [](Socket *socket) {
            auto client = std::make_unique<Client>();
            client->socket = socket;
            socket->getUserData()->client = std::move(client);
            socket->send(R"([{"ev":"status","status":"connected","message":"Connected Successfully"}])", uWS::OpCode::TEXT);
        },
        .message = [](Socket *socket, std::string_view message, uWS::OpCode) {
            if (message.find("\"auth\"") != message.npos) {
                socket->send(R"([{"ev":"status","status":"auth_success","message":"authenticated"}])", uWS::OpCode::TEXT);
                return;
            }
            Client *client = socket->getUserData()->client.get();
            std::string params = param(message), answer = "[";
            for (size_t at = 0; at <= params.size();) {
                size_t end = std::min(params.find(',', at), params.size());
                std::string channel = params.substr(at, end - at);
                if (client->channels.insert(channel).second) list_of(channel).push_back(client);
                answer += (at ? "," : "") + (R"({"ev":"status","status":"success","message":"subscribed to: )" + channel + "\"}");
                at = end + 1;
            }
            socket->send(answer + "]", uWS::OpCode::TEXT);
        },
        .close = [](Socket *socket, int, std::string_view) {
            Client *client = socket->getUserData()->client.get();
            for (const std::string &channel : client->channels) remove(list_of(channel), client);
            remove(dirty, client);
        },
    });
    app.listen("127.0.0.1", port, [](auto *socket) { if (!socket) exit(1); });
    connect(upstream_port);
    app.run();
}

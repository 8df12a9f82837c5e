/* Mock engine: engine PORT ANSWER_FILE [LOW_ANSWER_FILE]
 *
 * Answers every POST at once with the bytes of the first file, and 3 of 10 with those of the second if it is
 * given. A request with "stream":true gets 20 events, 10 ms apart, chunked. GETs (probes) get 200.
 */
#include "http1.h"

enum { BUFFER = 1 << 16, MOST = 4096, EVENTS = 20, PAUSE_US = 10000 };

struct connection {
    int fd;
    int left; /* events of its stream still to send; -1: no stream */
    unsigned generation;
    size_t filled;
    char buffer[BUFFER];
};

struct due { /* a stream's next event: pauses are equal, so that a queue is in order of time */
    struct connection *at;
    unsigned generation;
    uint64_t when;
};

static struct connection *by_fd[MOST];
static struct due queue[MOST];
static unsigned first, past;

static char *slurp(const char *name, size_t *size) {
    FILE *file = fopen(name, "rb");
    if (!file) die(name);
    char *data = malloc(BUFFER);
    *size = fread(data, 1, BUFFER, file);
    fclose(file);
    return data;
}

static void put(struct connection *at, const char *data, size_t size) {
    if (write(at->fd, data, size) < 0 && errno != EPIPE && errno != ECONNRESET) die("write");
}

static void later(struct connection *at, uint64_t when) {
    queue[past++ % MOST] = (struct due){at, at->generation, when};
}

static void next_event(struct connection *at, uint64_t when) {
    static const char event[] =
        "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,"
        "\"delta\":{\"content\":\" word\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
    char data[512];
    if (at->left) {
        put(at, data, (size_t)sprintf(data, "%zx\r\n%s\r\n", sizeof event - 1, event));
        at->left--;
        later(at, when + PAUSE_US);
    } else {
        static const char last[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
        at->left = -1;
        put(at, last, sizeof last - 1);
    }
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) return fprintf(stderr, "engine PORT ANSWER_FILE [LOW_ANSWER_FILE]\n"), 2;
    size_t answer_size, low_size = 0;
    char *answer = slurp(argv[2], &answer_size), *low = argc == 4 ? slurp(argv[3], &low_size) : NULL;
    unsigned long answered = 0;

    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = loopback(atoi(argv[1]));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) die("listen");
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    puts("listening");
    fflush(stdout);

    for (;;) {
        struct epoll_event events[256];
        uint64_t now = now_us();
        int timeout = first == past ? -1 : queue[first % MOST].when <= now ? 0 : (int)((queue[first % MOST].when - now + 999) / 1000);
        int ready = epoll_wait(poll, events, 256, timeout);
        for (int k = 0; k < ready; k++) {
            int fd = events[k].data.fd;
            if (fd == listener) {
                int accepted = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (accepted < 0 || accepted >= MOST) die("accept");
                no_delay(accepted);
                if (!by_fd[accepted]) by_fd[accepted] = calloc(1, sizeof **by_fd);
                by_fd[accepted]->fd = accepted;
                by_fd[accepted]->left = -1;
                by_fd[accepted]->filled = 0;
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = accepted};
                epoll_ctl(poll, EPOLL_CTL_ADD, accepted, &event);
                continue;
            }
            struct connection *at = by_fd[fd];
            ssize_t got = read(fd, at->buffer + at->filled, BUFFER - 1 - at->filled);
            if (got <= 0) {
                if (got < 0 && errno == EAGAIN) continue;
                at->generation++;
                close(fd);
                continue;
            }
            at->filled += (size_t)got;
            if (!message_size(at->buffer, at->filled)) continue;
            at->buffer[at->filled] = 0;
            at->filled = 0;
            if (!strncmp(at->buffer, "GET", 3)) {
                static const char ok[] = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
                put(at, ok, sizeof ok - 1);
            } else if (strstr(at->buffer, "\"stream\":true")) {
                static const char head[] =
                    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                put(at, head, sizeof head - 1);
                at->left = EVENTS;
                later(at, now_us());
            } else if (low && answered++ % 10 < 3) {
                put(at, low, low_size);
            } else {
                put(at, answer, answer_size);
            }
        }
        for (now = now_us(); first != past && queue[first % MOST].when <= now; first++) {
            struct due due = queue[first % MOST];
            if (due.generation == due.at->generation) next_event(due.at, due.when);
        }
    }
}

/* Closed-loop load generator: load PORT CONNECTIONS SECONDS REQUEST_FILE
 *
 * Each connection sends the request, reads the whole answer, and sends again, until the time is over.
 * A mark @@@@@@@@ in the request is replaced by a running number, so that no two requests are the same.
 * Prints one JSON object: answers, answers that were not 200, connections lost, seconds, latency percentiles.
 */
#include "http1.h"

enum { BUFFER = 1 << 16, SLOTS = 1 << 20 };

struct connection {
    int fd;
    size_t filled;
    uint64_t sent_at;
    char buffer[BUFFER];
};

static char *request, *mark;
static size_t request_size;
static unsigned long serial, answers, bad, lost;
static uint32_t *latencies; /* count by microsecond, the last slot open */

static void send_request(struct connection *at) {
    if (mark) {
        char number[9];
        snprintf(number, sizeof number, "%08lx", serial++ & 0xffffffffu);
        memcpy(mark, number, 8);
    }
    at->sent_at = now_us();
    if (write(at->fd, request, request_size) != (ssize_t)request_size) die("a request was not written whole");
}

static double percentile(double share) {
    unsigned long seen = 0;
    for (int slot = 0; slot < SLOTS; slot++)
        if ((seen += latencies[slot]) && (double)seen >= share * (double)answers) return slot;
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "load PORT CONNECTIONS SECONDS REQUEST_FILE\n"), 2;
    int port = atoi(argv[1]), connections = atoi(argv[2]);
    double seconds = atof(argv[3]);
    FILE *file = fopen(argv[4], "rb");
    if (!file) die(argv[4]);
    request = malloc(BUFFER);
    request_size = fread(request, 1, BUFFER, file);
    mark = memmem(request, request_size, "@@@@@@@@", 8);
    latencies = calloc(SLOTS, sizeof *latencies);

    int poll = epoll_create1(0);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    struct sockaddr_in address = loopback(port);
    for (int k = 0; k < connections; k++) {
        all[k].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(all[k].fd, (struct sockaddr *)&address, sizeof address)) die("connect");
        no_delay(all[k].fd);
        fcntl(all[k].fd, F_SETFL, O_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[k]};
        epoll_ctl(poll, EPOLL_CTL_ADD, all[k].fd, &event);
    }
    uint64_t start = now_us(), end = start + (uint64_t)(seconds * 1e6), now = start;
    for (int k = 0; k < connections; k++) send_request(&all[k]);
    while (now < end) {
        struct epoll_event events[256];
        int ready = epoll_wait(poll, events, 256, 100);
        for (int k = 0; k < ready; k++) {
            struct connection *at = events[k].data.ptr;
            ssize_t got = read(at->fd, at->buffer + at->filled, BUFFER - at->filled);
            if (got <= 0) {
                if (got < 0 && errno == EAGAIN) continue;
                lost++;
                close(at->fd);
                continue;
            }
            at->filled += (size_t)got;
            /* A stream's head is long past when its end comes: look for the end only where it can be. */
            if (at->filled > 7 && at->filled < BUFFER && memmem(at->buffer, at->filled > 256 ? 256 : at->filled, "chunked", 7) &&
                memcmp(at->buffer + at->filled - 7, "\r\n0\r\n\r\n", 7))
                continue;
            size_t size = message_size(at->buffer, at->filled);
            if (!size) {
                if (at->filled == BUFFER) return fprintf(stderr, "an answer is over %d bytes\n", BUFFER), 1;
                continue;
            }
            uint64_t took = now_us() - at->sent_at;
            latencies[took < SLOTS ? took : SLOTS - 1]++;
            answers++;
            bad += memcmp(at->buffer, "HTTP/1.1 200", 12) != 0;
            at->filled = 0;
            send_request(at);
        }
        now = now_us();
    }
    printf("{\"answers\": %lu, \"bad\": %lu, \"lost\": %lu, \"seconds\": %.6f, \"p50Us\": %.0f, \"p99Us\": %.0f}\n",
           answers, bad, lost, (double)(now - start) / 1e6, percentile(0.5), percentile(0.99));
    return 0;
}

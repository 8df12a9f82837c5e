/* What the load generator and the mock engine share: sockets, time, and finding the end of a message.
 *
 * Both speak just enough HTTP/1.1 for a benchmark on loopback: keep-alive, Content-Length, chunked.
 */
#ifndef CASCADIA_BENCH_HTTP1_H
#define CASCADIA_BENCH_HTTP1_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* Value of a header in a head that ends at `end`, or NULL. `name` starts with "\n" and ends with ":". */
static inline const char *header(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *at = head; at + length < end; at++) {
        at = memchr(at, '\n', (size_t)(end - at));
        if (!at || at + length >= end) return NULL;
        if (!strncasecmp(at, name, length)) {
            at += length;
            while (*at == ' ') at++;
            return at;
        }
    }
    return NULL;
}

/* Bytes of the first whole message in `data`, 0 if it is not complete yet. */
static inline size_t message_size(const char *data, size_t size) {
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head = (size_t)(end - data) + 4;
    const char *length = header(data, end + 2, "\ncontent-length:");
    if (length) {
        size_t whole = head + strtoul(length, NULL, 10);
        return size >= whole ? whole : 0;
    }
    if (header(data, end + 2, "\ntransfer-encoding:")) {
        /* The chunks themselves never hold this mark here. */
        const char *last = memmem(end + 2, size - head + 2, "\r\n0\r\n\r\n", 7);
        return last ? (size_t)(last - data) + 7 : 0;
    }
    return head;
}

#endif

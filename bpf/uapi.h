/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Constants from the kernel's headers, which aren't available when BCC compiles this (see stub/).
 */
#ifndef NETPOLL_UAPI_H
#define NETPOLL_UAPI_H

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define EINTR 4
#define EBADF 9
#define EAGAIN 11
#define EEXIST 17
#define EPOLLIN 0x001u
#define EPOLLOUT 0x004u
#define EPOLLERR 0x008u
#define EPOLLHUP 0x010u
#define EPOLLRDHUP 0x2000u
#define EPOLLET 0x80000000u
#define EPOLL_CTL_ADD 1
#define EPOLL_CTL_DEL 2
#define SOL_SOCKET 1
#define SO_ERROR 4
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define NAGLE_CHANGED 0xf /* tcp_sock.nonagle: TCP_NODELAY or TCP_CORK is on */
#define TCP_LISTEN 10
#define RCV_SHUTDOWN 1
#define MSG_PEEK 2
#define S_IFMT 0170000
#define S_IFSOCK 0140000

/* struct epoll_event, in words of 32 bits. */
#ifdef NETPOLL_AARCH64
#define EVENT_WORDS 4 /* u32 events, padding, u64 data */
#define EVENT_DATA 2
#else
#define EVENT_WORDS 3 /* packed on x86-64 */
#define EVENT_DATA 1
#endif

#endif

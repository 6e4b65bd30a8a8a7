/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What a descriptor is: its inode, and a socket's two ends. They are read from the kernel's structs
 * at offsets that the agent takes from BTF and passes as -D. Without BTF, descriptors are unknown.
 */

#if defined(TASK_FILES_OFFSET) || defined(TASK_CRED_OFFSET)
static __always_inline u64 kernel_word(u64 address)
{
	u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)address);
	return word;
}

#define READ_MEMBER(member, from) bpf_probe_read_kernel(&(member), sizeof(member), (void *)(from))
#endif

#ifdef TASK_FILES_OFFSET
/* The struct file of a task's descriptor, 0 if it has no such descriptor. fd may be any number:
 * some come from the process's memory. RCU keeps the table and its content until this program
 * ends. */
static __always_inline u64 file_in(u64 task, u64 fd)
{
	u64 files = kernel_word(task + TASK_FILES_OFFSET);
	u64 table = files ? kernel_word(files + FILES_FDT_OFFSET) : 0;
	u64 slots = table ? kernel_word(table + FDT_FD_OFFSET) : 0;
	u32 size = 0;

	if (!slots || READ_MEMBER(size, table + FDT_MAX_FDS_OFFSET) || fd >= size)
		return 0;
	return kernel_word(slots + fd * 8);
}

static __always_inline u64 file_of(u64 fd)
{
	return file_in(bpf_get_current_task(), fd);
}

static __always_inline u32 inode_of(u64 file)
{
	return file ? kernel_word(kernel_word(file + FILE_INODE_OFFSET) + INODE_INO_OFFSET) : 0;
}

/* The struct socket behind a file whose inode has this mode; 0 if it isn't a socket. */
static __always_inline u64 socket_of(u64 file, u16 mode)
{
	u64 socket;

	if ((mode & S_IFMT) != S_IFSOCK)
		return 0;
	socket = kernel_word(file + FILE_PRIVATE_OFFSET);
	/* The mode doesn't prove a socket: an O_PATH descriptor of a unix socket's name has it,
	 * too. */
	return socket && kernel_word(socket + SOCKET_FILE_OFFSET) == file ? socket : 0;
}

static __always_inline u16 mode_of(u64 file)
{
	u16 mode = 0;

	READ_MEMBER(mode, kernel_word(file + FILE_INODE_OFFSET) + INODE_MODE_OFFSET);
	return mode;
}

static __always_inline u32 tcp_word(u64 sk, u32 offset)
{
	u32 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)(sk + offset));
	return word;
}

static __always_inline void describe_socket(u64 socket, struct endpoint *e)
{
	u64 sk;

	if (!socket)
		return;
	sk = kernel_word(socket + SOCKET_SK_OFFSET);
	if (!sk)
		return;
	READ_MEMBER(e->type, socket + SOCKET_TYPE_OFFSET);
	READ_MEMBER(e->family, sk + SOCK_FAMILY_OFFSET);
	/* Other families keep something else at these offsets. */
	if (e->family != AF_INET && e->family != AF_INET6)
		return;
	READ_MEMBER(e->state, sk + SOCK_STATE_OFFSET);
	READ_MEMBER(e->port, sk + SOCK_PORT_OFFSET);
	READ_MEMBER(e->peer_port, sk + SOCK_PEER_PORT_OFFSET);
	if (e->family == AF_INET6) {
		READ_MEMBER(e->address, sk + SOCK_ADDRESS6_OFFSET);
		READ_MEMBER(e->peer_address, sk + SOCK_PEER_ADDRESS6_OFFSET);
	} else {
		bpf_probe_read_kernel(e->address, 4, (void *)(sk + SOCK_ADDRESS_OFFSET));
		bpf_probe_read_kernel(e->peer_address, 4, (void *)(sk + SOCK_PEER_ADDRESS_OFFSET));
	}
}

/* Fills in e, which is all zero. If the descriptor is closed meanwhile, e stays zero, because what
 * was read may already belong to another process's file. */
static __always_inline void describe(u64 fd, struct endpoint *e)
{
	u64 file = file_of(fd), inode;

	if (!file)
		return;
	inode = kernel_word(file + FILE_INODE_OFFSET);
	READ_MEMBER(e->mode, inode + INODE_MODE_OFFSET);
	e->inode = kernel_word(inode + INODE_INO_OFFSET);
	describe_socket(socket_of(file, e->mode), e);
	if (file_of(fd) != file)
		__builtin_memset(e, 0, sizeof(*e));
}

#ifdef FILE_EPOLL_OFFSET
#define FILE_REGISTRATIONS
/* Since 5.11 a file points to the head of its registrations, in all epoll instances. */
static __always_inline int registered_twice(u64 file)
{
	u64 head = kernel_word(file + FILE_EPOLL_OFFSET);
	u64 first = head ? kernel_word(head) : 0;

	return first && kernel_word(first);
}
#elif defined(FILE_EPOLL_LIST_OFFSET)
#define FILE_REGISTRATIONS
/* Before 5.11 the file held the head of a list that ends in it. */
static __always_inline int registered_twice(u64 file)
{
	u64 head = file + FILE_EPOLL_LIST_OFFSET;
	u64 first = kernel_word(head);

	return first && first != head && kernel_word(first) != head;
}
#endif

/* SEEN_...; 0 if it isn't a socket, or the kernel does not provide it. A duplicate of a descriptor
 * is the same file, also in another process. */
static __always_inline u32 look_at_socket(u64 fd)
{
#if defined(SOCK_ERROR_QUEUE_OFFSET) && defined(FILE_REGISTRATIONS)
	u64 file = file_of(fd), socket = socket_of(file, mode_of(file)), sk;
	u32 length = 0, seen = SEEN_SOCKET;

	if (!socket)
		return 0;
	sk = kernel_word(socket + SOCKET_SK_OFFSET);
	if (!sk || READ_MEMBER(length, sk + SOCK_ERROR_QUEUE_OFFSET + QUEUE_LENGTH_OFFSET))
		return 0;
	if (length)
		seen |= SEEN_QUEUED;
	if (registered_twice(file))
		seen |= SEEN_TWICE;
	return seen;
#else
	return 0;
#endif
}
#else
#define file_of(fd) 0
#define inode_of(file) 0
#define describe(fd, e)
#define look_at_socket(fd) 0
#endif

// A program that lies to the probe, from SIGUSR1 on, for -for. It has an epoll instance that looks like the
// runtime's, and registers invented pollDescs with it: with descriptors beyond every table, numbers that
// aren't descriptors, states that no runtime has, links to themselves, addresses in the kernel or where
// nothing is mapped, and events with any data. After each poll it reads and writes descriptors that it does
// not have. Its only socket is a UDP socket, bound to -own; if another address is reported, it belongs to
// another process.
package main

import (
	"flag"
	"fmt"
	"math/rand"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"services/kit"
)

const (
	goEvents = syscall.EPOLLIN | syscall.EPOLLOUT | syscall.EPOLLRDHUP | 1<<31
	lies     = 64 // events per poll
	table    = 256
)

// As in Go 1.19, whose data is just the address.
type pollDesc struct {
	link, fd, fdseq, rg, wg, rest, unused1, unused2 uint64
}

func main() {
	lifetime := flag.Duration("for", 5*time.Second, "how long")
	own := flag.String("own", "127.77.0.1:0", "address of the only socket that is its own")
	flag.Parse()
	runtime.LockOSThread()
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	kit.Must(err)
	wakeup := eventfd()
	kit.Must(syscall.EpollCtl(ep, syscall.EPOLL_CTL_ADD, wakeup, &syscall.EpollEvent{Events: syscall.EPOLLIN}))
	// The next page isn't mapped.
	page, err := syscall.Mmap(-1, 0, 2*4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	kit.Must(err)
	kit.Must(syscall.Mprotect(page[4096:], syscall.PROT_NONE))
	descs := (*[lies]pollDesc)(unsafe.Pointer(&page[0]))
	fds := [lies]int{}
	for i := range descs {
		fds[i] = eventfd()
		descs[i] = pollDesc{fd: uint64(fds[i])}
		kit.Must(register(ep, syscall.EPOLL_CTL_ADD, fds[i], address(&descs[i])))
	}
	socket := bound(*own)
	// A descriptor table of known size: the memory behind it belongs to others.
	kit.Must(syscall.Dup3(fds[0], table-1, syscall.O_CLOEXEC))
	begin := make(chan os.Signal, 1)
	signal.Notify(begin, syscall.SIGUSR1)
	fmt.Println("ready on", *own)
	<-begin

	numbers := []uint64{uint64(socket), table - 1, table, 16383, 16384, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1<<32 + uint64(socket),
		1 << 60, 1<<61 - 1, 1 << 61, 1 << 62, 1 << 63, ^uint64(0) - 1, ^uint64(0)}
	words := []uint64{0, 1, 2, 3, address(&descs[1]), address(&descs[lies-1]) + 4096, 0xffff888000000000, 0xffffffff81000000,
		1 << 47, 1<<47 - 8, 1 << 63, ^uint64(0)}
	events := make([]syscall.EpollEvent, 2*lies)
	next := uint64(0)
	for end := time.Now().Add(*lifetime); time.Now().Before(end); {
		for i := range descs {
			d := &descs[i]
			d.link, d.fdseq, d.rest = address(d), pick(words), pick(words)
			d.rg, d.wg = 0, 0 // nobody waits: only the number is there
			switch i % 4 {
			case 0: // each descriptor that a table might have
				next = (next + 1) % 8000
				d.fd = next
			case 1:
				d.fd = pick(numbers)
			case 2: // a goroutine is parked there
				d.fd, d.rg, d.wg = uint64(rand.Intn(8000)), pick(words), pick(words)
			case 3:
				d.fd, d.rg, d.wg = rand.Uint64(), rand.Uint64(), rand.Uint64()
			}
			data := address(d)
			if i%8 == 7 {
				data = pick(words)
			}
			kit.Must(register(ep, syscall.EPOLL_CTL_MOD, fds[i], data))
		}
		n, err := syscall.EpollWait(ep, events, 0)
		if err != nil || n == 0 {
			continue
		}
		for i := range descs {
			if fd := int32(descs[i].fd); fd < 0 || fd >= table {
				syscall.Read(int(fd), page[:1])
				syscall.Write(int(fd), page[:1])
			}
		}
	}
	fmt.Println("done")
	select {}
}

func address(d *pollDesc) uint64 { return uint64(uintptr(unsafe.Pointer(d))) }

func pick(from []uint64) uint64 { return from[rand.Intn(len(from))] }

func register(ep, op, fd int, data uint64) error {
	return syscall.EpollCtl(ep, op, fd, &syscall.EpollEvent{Events: goEvents, Fd: int32(data), Pad: int32(data >> 32)})
}

func eventfd() int {
	fd, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 1, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errno != 0 {
		kit.Must(errno)
	}
	return int(fd)
}

func bound(addr string) int {
	a, err := net.ResolveUDPAddr("udp4", addr)
	kit.Must(err)
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	kit.Must(err)
	sa := &syscall.SockaddrInet4{Port: a.Port}
	copy(sa.Addr[:], a.IP.To4())
	kit.Must(syscall.Bind(fd, sa))
	return fd
}

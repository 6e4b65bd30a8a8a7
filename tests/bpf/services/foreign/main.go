// Go's own echo on -addr, and on -foreign an echo with its own epoll loop, as in gnet or a cgo library:
// edge-triggered with exactly the runtime's mask, but its own data; with -mimic also with a wake-up fd,
// registered as the runtime does. Its loop exists before the runtime's. True numbers: each spaced ping to
// -addr = one productive read wakeup; pings to -foreign = none, and no events and polls of the runtime,
// although each makes the other loop read, and read again until EAGAIN. With -only the program never listens
// through Go: it has no pollDesc, and no numbers.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"runtime"
	"syscall"

	"services/kit"
)

const edgeTriggered = 1 << 31 // syscall.EPOLLET is negative

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	foreign := flag.String("foreign", "127.0.0.1:0", "address of the other loop's echo")
	mimic := flag.Bool("mimic", false, "have a wake-up fd as the runtime has one")
	only := flag.Bool("only", false, "listen on -foreign only")
	flag.Parse()
	running := make(chan bool)
	go loop(listen(*foreign), *mimic, running)
	<-running
	if *only {
		fmt.Println("ready on", *foreign)
		select {}
	}
	kit.Serve(kit.Listen(*addr), kit.Echo)
}

func listen(addr string) int {
	a, err := net.ResolveTCPAddr("tcp4", addr)
	kit.Must(err)
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	kit.Must(err)
	kit.Must(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
	sa := &syscall.SockaddrInet4{Port: a.Port}
	copy(sa.Addr[:], a.IP.To4())
	kit.Must(syscall.Bind(fd, sa))
	kit.Must(syscall.Listen(fd, 128))
	return fd
}

func loop(listener int, mimic bool, running chan<- bool) {
	runtime.LockOSThread()
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	kit.Must(err)
	if mimic {
		wakeup, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 0, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		if errno != 0 {
			log.Fatal(errno)
		}
		// Data 0, as Go 1.27 has it.
		kit.Must(syscall.EpollCtl(ep, syscall.EPOLL_CTL_ADD, int(wakeup), &syscall.EpollEvent{Events: syscall.EPOLLIN}))
	}
	add := func(fd int) {
		kit.Must(syscall.EpollCtl(ep, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{
			Events: syscall.EPOLLIN | syscall.EPOLLOUT | syscall.EPOLLRDHUP | edgeTriggered,
			Fd:     int32(fd), Pad: 0x5ca1ab1e, // the data: can't be an address
		}))
	}
	add(listener)
	close(running)
	events, buf := make([]syscall.EpollEvent, 64), make([]byte, 64<<10)
	for {
		n, err := syscall.EpollWait(ep, events, -1)
		if err != syscall.EINTR {
			kit.Must(err)
		}
		for i := 0; i < n; i++ {
			fd := int(events[i].Fd)
			if fd == listener {
				for {
					c, _, err := syscall.Accept4(fd, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
					if err != nil {
						break
					}
					add(c)
				}
				continue
			}
			for {
				n, err := syscall.Read(fd, buf)
				if err == syscall.EAGAIN {
					break
				}
				if n <= 0 {
					syscall.Close(fd)
					break
				}
				syscall.Write(fd, buf[:n])
			}
		}
	}
}

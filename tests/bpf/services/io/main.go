// I/O calls of known number and outcome. A command "N" makes its kind of them N times, in a row and past the Go
// scheduler, and answers "done". True numbers, beside the few calls that the command itself takes:
//
//	-do            N times                                              I/O calls  futile
//	eagain         read an empty pipe                                   N          N - 2
//	eof            read a pipe that nobody writes to any more           N          N - 2
//	error          read a directory (EISDIR)                            N          N - 2
//	splice         splice from an empty pipe to another                 N          N - 2
//	two            read each of two empty pipes                         2 N        2 (N - 2)
//	check          read an empty pipe twice, then write and read it     4 N        0
//	alternate      read an empty pipe, and pread it (ESPIPE)            2 N        0
//	pause          read an empty pipe three times, sleep 3 ms           3 N        N
//	reopen         open an empty file, read it, close it                N          0
//	redirect       read an empty file, and put another in its place     N          0
//	datagram       send an empty datagram, and receive it               2 N        0
//	new            read each of N empty pipes, once; they stay open     N          0
package main

import (
	"flag"
	"log"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	do := flag.String("do", "eagain", "what a command does N times")
	flag.Parse()
	run := kinds()[*do]
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		for ; n > 0; n-- {
			run()
		}
		return "done"
	})
}

func kinds() map[string]func() {
	empty, other, ended := pipe(), pipe(), pipe()
	syscall.Close(ended[1])
	directory := open("/")
	nothing := open(os.DevNull)
	datagrams, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_NONBLOCK, 0)
	kit.Must(err)
	return map[string]func(){
		"eagain": func() { read(empty[0], syscall.EAGAIN) },
		"eof":    func() { read(ended[0], 0) },
		"error":  func() { read(directory, syscall.EISDIR) },
		"splice": func() { splice(empty[0], other[1], syscall.EAGAIN) },
		"two": func() {
			read(empty[0], syscall.EAGAIN)
			read(other[0], syscall.EAGAIN)
		},
		"check": func() {
			read(empty[0], syscall.EAGAIN)
			read(empty[0], syscall.EAGAIN)
			write(empty[1], 1)
			read(empty[0], 0)
		},
		"alternate": func() {
			read(empty[0], syscall.EAGAIN)
			transfer(syscall.SYS_PREAD64, empty[0], 1, syscall.ESPIPE)
		},
		"pause": func() {
			for i := 0; i < 3; i++ {
				read(empty[0], syscall.EAGAIN)
			}
			time.Sleep(3 * time.Millisecond)
		},
		"reopen": func() {
			fd := open(os.DevNull)
			read(fd, 0)
			syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(fd), 0, 0)
		},
		"redirect": func() {
			read(nothing, 0)
			syscall.RawSyscall(syscall.SYS_DUP3, uintptr(ended[0]), uintptr(nothing), 0)
		},
		"datagram": func() {
			write(datagrams[1], 0)
			read(datagrams[0], 0)
		},
		"new": func() { read(pipe()[0], syscall.EAGAIN) },
	}
}

func pipe() [2]int {
	var ends [2]int
	kit.Must(syscall.Pipe2(ends[:], syscall.O_NONBLOCK|syscall.O_CLOEXEC))
	return ends
}

func open(path string) int {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	kit.Must(err)
	return fd
}

func read(fd int, wanted syscall.Errno) { transfer(syscall.SYS_READ, fd, 1, wanted) }
func write(fd int, length uintptr)      { transfer(syscall.SYS_WRITE, fd, length, 0) }
func splice(from, to int, wanted syscall.Errno) {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, 1, 2)
	check("splice", errno, wanted)
}

func transfer(call uintptr, fd int, length uintptr, wanted syscall.Errno) {
	var b [1]byte
	_, _, errno := syscall.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&b)), length, 0, 0, 0)
	check("transfer", errno, wanted)
}

func check(what string, errno, wanted syscall.Errno) {
	if errno != wanted {
		log.Fatalf("%s: %v, not %v", what, errno, wanted)
	}
}

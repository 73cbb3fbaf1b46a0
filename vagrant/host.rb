# frozen_string_literal: true

# What this host has for the machines, looked at before anything starts.
module Host
  # Checks answer with what is wrong and what to do about it.
  class Unfit < Vagrant::Errors::VagrantError
    error_message("%{reason}")
  end

  # Where libvirt listens: one daemon for all, or one for QEMU.
  SOCKETS = %w[/run/libvirt/libvirt-sock /run/libvirt/virtqemud-sock].freeze
  IMAGES = { "libvirt" => "/var/lib/libvirt/images", "virtualbox" => Dir.home }.freeze

  module_function

  # Refuse `vagrant up` where it would fail halfway. Sizes are in MiB, for each of +machines+.
  def check(machines:, memory:, disk:)
    provider = asked || found
    refuse(NO_PROVIDER) if provider.nil?
    refuse(MISSING.fetch(provider)) if MISSING.key?(provider) && !usable.include?(provider)
    check_cpu(provider)
    wanted = [(ARGV & machines).size, 1].max
    wanted = machines.size if (ARGV & machines).empty?
    check_room(provider, wanted, memory, disk)
  end

  # The provider that the command line or the environment names.
  def asked
    named = ARGV.each_with_index.filter_map do |word, index|
      word.start_with?("--provider=") ? word.split("=", 2).last : (ARGV[index + 1] if word == "--provider")
    end
    named.last || ENV["VAGRANT_DEFAULT_PROVIDER"]
  end

  def found
    usable.first
  end

  def usable
    @usable ||= [("libvirt" if libvirt?), ("virtualbox" if program?("VBoxManage"))].compact
  end

  def libvirt?
    Gem.loaded_specs.key?("vagrant-libvirt") && SOCKETS.any? { |path| File.writable?(path) }
  end

  # Whether the CPU itself runs guests: a /dev/kvm without the flag does not run every kernel.
  def virtualization?
    return true unless File.exist?("/proc/cpuinfo")

    File.read("/proc/cpuinfo").split.any? { |word| %w[vmx svm].include?(word) }
  end

  def kvm?
    virtualization? && File.writable?("/dev/kvm")
  end

  def check_cpu(provider)
    if provider == "virtualbox" && !virtualization?
      refuse("VirtualBox needs a CPU that runs guests, and this one does not#{nested}.")
    elsif provider == "libvirt" && !kvm?
      warn("No KVM here#{nested}: QEMU interprets the machines, which takes ten times as long.")
    end
  end

  def nested
    inside = File.exist?("/proc/cpuinfo") && File.read("/proc/cpuinfo").split.include?("hypervisor")
    inside ? " (it is a virtual machine itself, without nested virtualization)" : ""
  end

  def check_room(provider, machines, memory, disk)
    free = available_memory
    if free && free < machines * memory
      refuse("#{free} MB of memory are free, and #{machines} machine(s) of #{memory} MB are wanted: " \
             "UNIONFS_MEMORY=512 makes them smaller, `vagrant up node1` starts one.")
    end
    place = IMAGES.fetch(provider, Dir.home)
    free = available_disk(place)
    return if free.nil? || free >= machines * disk

    refuse("#{place}: #{free} MB are free, and #{machines} machine(s) need #{disk} MB each.")
  end

  # MiB that can be had; nil where the host does not tell.
  def available_memory
    return unless File.exist?("/proc/meminfo")

    File.read("/proc/meminfo")[/^MemAvailable:\s+(\d+)/, 1].to_i / 1024
  end

  def available_disk(place)
    place = File.dirname(place) until File.exist?(place)
    IO.popen(["df", "-Pk", place], &:read).lines.last.split[-3].to_i / 1024
  rescue Errno::ENOENT
    nil
  end

  def program?(name)
    ENV["PATH"].split(File::PATH_SEPARATOR).any? { |place| File.executable?(File.join(place, name)) }
  end

  def refuse(reason)
    raise Unfit, reason: reason
  end

  LIBVIRT = "the plugin vagrant-libvirt and a running libvirtd that you may use " \
            "(Debian: apt install vagrant-libvirt libvirt-daemon-system rsync; adduser $USER libvirt)"
  MISSING = {
    "libvirt" => "The provider libvirt needs #{LIBVIRT}.",
    "virtualbox" => "The provider virtualbox needs VirtualBox: VBoxManage is not in PATH."
  }.freeze
  NO_PROVIDER = "There is no provider: neither #{LIBVIRT}, nor VirtualBox."
end
